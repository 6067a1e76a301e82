"""Attention over paged memory: planned once per step, run once per layer."""

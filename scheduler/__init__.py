"""Policies: pure functions of values. They see views and works, never engines or instances."""

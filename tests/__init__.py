"""Tests, mirroring the tree; flows through everything are in ``flow``."""

"""Cyclic garbage while a world runs: collected seldom.

A run keeps most of what it makes (rows, caches), and little of the rest is in cycles, so the
collector's default of a look at every 700 new objects is a sixth of the time of a run.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

YOUNG = 50_000
"""New objects between two looks at the youngest."""


@contextmanager
def seldom_collected() -> Iterator[None]:
    """What is there already is not looked at inside, and what comes is so every ``YOUNG`` objects;
    behind it everything is as before."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(YOUNG, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()

"""In which slices this machine's system gives out its cores, as far as it tells.

Knows Linux's rule (``kernel/sched/fair.c``, since 6.6; where its settings can be read, only its
keepers may read them); nothing is measured.
"""

import gzip
import math
import os
import platform
import re
from pathlib import Path

BASE_SLICE_S = 0.0007
"""On one core; of more the first power of two, up to eight cores, adds one of these each."""
USUAL_HZ = 250.0
_CONFIG = Path("/proc/config.gz")


def slices(system: str = "", release: str = "", num_cores: int = 0) -> tuple[float, float]:
    """Seconds for which a thread keeps its core, and from one look at that to the next. (0, ...)
    where another rule holds, which is not modelled."""
    system, release = system or platform.system(), release or platform.release()
    version = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    if system != "Linux" or version < (6, 6):
        return 0.0, 1.0 / USUAL_HZ
    return BASE_SLICE_S * growth(num_cores or os.cpu_count() or 1), 1.0 / _ticks()


def growth(num_cores: int) -> int:
    """How many times as long slices are as on one core."""
    return 1 + int(math.log2(min(8, num_cores)))


def _ticks(config: Path = _CONFIG) -> float:
    """Ticks a second."""
    try:
        text = gzip.decompress(config.read_bytes()).decode()
    except (OSError, EOFError):
        return USUAL_HZ
    found = re.search(r"^CONFIG_HZ=(\d+)$", text, re.MULTILINE)
    return float(found[1]) if found else USUAL_HZ

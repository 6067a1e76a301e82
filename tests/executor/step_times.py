"""Step times of the wide checkpoint by ranks and where they are computed: ``python -m
tests.executor.step_times``. Prints a table; the cases take turns.

Knows plans and a clock. The checkpoint is tiny, so it shows what ranks cost, not what they gain.
"""

import random
import statistics
import tempfile
import time
from pathlib import Path

from tests import checkpoints
from tests.executor.driver import Driver, executors, scene
from triptych.core.plan import LanguagePlan

CASES = [(1, "inside"), (2, "inside"), (2, "processes"), (4, "inside"), (4, "processes")]
ROUNDS = 15
STEPS = 10
"""Of each kind in a row, of which the quickest counts: others use the machine too."""


def kinds(driver: Driver) -> dict[str, LanguagePlan]:
    """Plans that can be executed again and again."""
    rng = random.Random(1)
    whole = driver.add(scene(rng, [256], 690))
    decodes = []
    for _ in range(16):
        sequence = driver.add(scene(rng, [100], 690))
        driver.step((sequence, 100))
        decodes.append(sequence.segment(1))
    return {
        "decode of 1": LanguagePlan((decodes[0],)),
        "decode of 16": LanguagePlan(tuple(decodes)),
        "prefill of 256 tokens": LanguagePlan((whole.segment(256),)),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = checkpoints.write(checkpoints.WIDE, Path(root) / "wide")
        made = {
            case: executors(folder, num_ranks=case[0], parallel=case[1], kv_blocks=200)
            for case in CASES
        }
        plans = {case: kinds(Driver(each)) for case, each in made.items()}
        times: dict[tuple[object, str], list[float]] = {}
        for _ in range(ROUNDS):
            for case in CASES:
                for kind, plan in plans[case].items():
                    best = min(made[case].language.execute(plan).seconds for _ in range(STEPS))
                    times.setdefault((case, kind), []).append(best * 1e3)
                time.sleep(0.05)
        names = list(plans[CASES[0]])
        print("| ranks | computed |", " | ".join(f"{name} (ms)" for name in names), "|")
        print("|---" * (len(names) + 2) + "|")
        for case in CASES:
            cells = [times[case, name] for name in names]
            words = [f"{statistics.median(c):.2f} ({min(c):.2f}-{max(c):.2f})" for c in cells]
            print(f"| {case[0]} | {case[1]} |", " | ".join(words), "|")
        for each in made.values():
            each.close()


if __name__ == "__main__":
    main()

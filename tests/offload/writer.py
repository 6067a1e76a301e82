"""A process that writes entries to a disk tier's file for ever; a test kills it.

``python writer.py PATH SEED``: entries of one to three slots, whose bytes follow from key and
seed, over and over each other. Says "." once it has begun.
"""

import random
import sys
from pathlib import Path

from triptych.core.ids import ContentHash
from triptych.offload.disk import DiskFile, Shape
from triptych.offload.host import pages

SECRET = b"a secret of the cluster"
SHAPE = Shape(b"layout".ljust(32), 12288, 13)
NUM_KEYS = 40


def key_of(number: int) -> ContentHash:
    return ContentHash(number.to_bytes(32, "big"))


def content(key: ContentHash, part: int, count: int) -> bytes:
    """The only right bytes of a part."""
    return random.Random(key + bytes([part, count])).randbytes(SHAPE.slot_bytes)


def buffers(count: int) -> list[memoryview]:
    size = SHAPE.slot_bytes
    memory = pages(size * count)
    return [memory[at * size : (at + 1) * size] for at in range(count)]


def write(file: DiskFile, key: ContentHash, slots: list[int]) -> None:
    parts = buffers(len(slots))
    for number, part in enumerate(parts):
        part[:] = content(key, number, len(slots))
    file.write(key, slots, parts)


def count_of(key: ContentHash) -> int:
    return 1 + key[-1] % 3


def main() -> None:
    path, seed = sys.argv[1:]
    rng = random.Random(seed)
    file = DiskFile(Path(path), SHAPE, SECRET)
    print(".", flush=True)
    while True:
        key = key_of(rng.randrange(NUM_KEYS))
        write(file, key, rng.sample(range(SHAPE.num_slots), count_of(key)))


if __name__ == "__main__":
    main()

"""The disk tier's file: whole or absent, whatever happens to the process or to the bytes."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.offload.writer import (
    SECRET,
    SHAPE,
    buffers,
    content,
    count_of,
    key_of,
    write,
)
from triptych.core.errors import ConfigError
from triptych.offload import disk
from triptych.offload.disk import DiskFile, Shape
from triptych.offload.host import PAGE

pytestmark = pytest.mark.usefixtures("no_leak")

NUM_KILLS = 40


def read(file: DiskFile, key, slots) -> list[bytes] | None:
    parts = buffers(len(slots))
    return [bytes(part) for part in parts] if file.read(key, slots, parts) else None


def expect(file: DiskFile, key, slots) -> None:
    assert read(file, key, slots) == [content(key, n, len(slots)) for n in range(len(slots))]


@pytest.fixture(params=[None, False], ids=["direct", "buffered"])
def is_direct(request):
    return request.param


def test_what_was_written_is_read_and_found_again(tmp_path: Path, is_direct):
    path = tmp_path / "kv.tier"
    file = DiskFile(path, SHAPE, SECRET, is_direct=is_direct)
    assert file.found == {}
    assert path.stat().st_size == SHAPE.file_bytes and path.stat().st_mode & 0o077 == 0
    write(file, key_of(1), [7])
    write(file, key_of(2), [12, 0, 3])
    expect(file, key_of(1), [7])
    expect(file, key_of(2), [12, 0, 3])
    assert read(file, key_of(1), [0]) is None
    assert read(file, key_of(2), [0, 12, 3]) is None
    file.close()
    file.close()
    again = DiskFile(path, SHAPE, SECRET, is_direct=is_direct)
    assert again.found == {key_of(1): (7,), key_of(2): (12, 0, 3)}
    expect(again, key_of(1), [7])
    write(again, key_of(3), [0])  # half of what key 2 had
    write(again, key_of(1), [5])
    again.close()
    last = DiskFile(path, SHAPE, SECRET)
    assert list(last.found.items()) == [(key_of(3), (0,)), (key_of(1), (5,))]
    last.close()


def test_direct_io_is_used_where_the_file_system_takes_it(tmp_path: Path):
    with open(tmp_path / "probe", "wb") as probe:
        probe.write(bytes(4096))
    try:
        os.close(os.open(tmp_path / "probe", os.O_RDWR | os.O_DIRECT))
    except OSError:
        pytest.skip("the file system takes no direct I/O")
    file = DiskFile(tmp_path / "kv.tier", SHAPE, SECRET)
    assert file.is_direct
    file.close()


@pytest.mark.parametrize(
    ("shape", "secret"),
    [
        (SHAPE._replace(layout=b"another".ljust(32)), SECRET),
        (SHAPE._replace(slot_bytes=8192), SECRET),
        (SHAPE._replace(num_slots=14), SECRET),
        (SHAPE, b"another secret"),
    ],
    ids=["layout", "slot", "slots", "secret"],
)
def test_a_file_made_for_something_else_is_emptied(tmp_path: Path, shape: Shape, secret: bytes):
    path = tmp_path / "kv.tier"
    file = DiskFile(path, SHAPE, SECRET)
    write(file, key_of(1), [7])
    file.close()
    other = DiskFile(path, shape, secret)
    assert other.found == {}
    other.close()
    back = DiskFile(path, SHAPE, SECRET)
    assert back.found == {}
    back.close()


def test_a_killed_writer_leaves_every_entry_whole_or_absent(tmp_path: Path):
    path, rng = tmp_path / "kv.tier", random.Random(7)
    num_found = 0
    for number in range(NUM_KILLS):
        command = [sys.executable, "-m", "tests.offload.writer", str(path), str(number)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None and child.stdout.read(1) == b"."
            time.sleep(rng.uniform(0.0, 0.05))
            child.send_signal(signal.SIGKILL)
        file = DiskFile(path, SHAPE, SECRET)
        used = [slot for slots in file.found.values() for slot in slots]
        assert len(used) == len(set(used))
        for key, slots in file.found.items():
            assert len(slots) == count_of(key)
            expect(file, key, slots)
        num_found += len(file.found)
        file.close()
    assert num_found >= NUM_KILLS


def test_a_flipped_bit_anywhere_is_a_miss(tmp_path: Path):
    path, rng = tmp_path / "kv.tier", random.Random(3)
    file = DiskFile(path, SHAPE, SECRET, is_direct=False)
    write(file, key_of(2), [4, 9, 1])
    expect(file, key_of(2), [4, 9, 1])
    record_at = 4096 + 9 * 128
    places = [record_at + at for at in (*range(76), *range(120, 128))]  # all but the padding
    payload_at = SHAPE.table_bytes + 9 * SHAPE.slot_bytes
    places += [payload_at + rng.randrange(SHAPE.slot_bytes) for _ in range(40)]
    fd = os.open(path, os.O_RDWR)
    for place in places:
        before = os.pread(fd, 1, place)
        os.pwrite(fd, bytes([before[0] ^ (1 << rng.randrange(8))]), place)
        assert read(file, key_of(2), [4, 9, 1]) is None, place
        os.pwrite(fd, before, place)
    expect(file, key_of(2), [4, 9, 1])
    os.close(fd)
    file.close()


def test_a_record_of_more_parts_than_there_are_slots_is_no_entry(tmp_path: Path):
    """As many as a table may say are never looked for: the memory for that would be too much."""
    path = tmp_path / "kv.tier"
    file = DiskFile(path, SHAPE, SECRET)
    write(file, key_of(1), [2])
    write(file, key_of(2), [3])
    file.close()
    data = bytearray(path.read_bytes())
    at = PAGE + 2 * disk._RECORD_BYTES
    record = disk._RECORD.unpack_from(data, at)
    disk._RECORD.pack_into(data, at, *record[:3], 2**32 - 1, record[4])
    path.write_bytes(data)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, hard))
    try:
        again = DiskFile(path, SHAPE, SECRET)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert again.found == {key_of(2): (3,)}
    again.close()


def test_the_payload_of_another_slot_is_a_miss(tmp_path: Path):
    path = tmp_path / "kv.tier"
    file = DiskFile(path, SHAPE, SECRET, is_direct=False)
    write(file, key_of(3), [0])
    write(file, key_of(6), [1])
    fd, size = os.open(path, os.O_RDWR), SHAPE.slot_bytes
    os.pwrite(fd, os.pread(fd, size, SHAPE.table_bytes), SHAPE.table_bytes + size)
    os.close(fd)
    assert read(file, key_of(6), [1]) is None
    expect(file, key_of(3), [0])
    file.close()


def test_a_folder_that_is_not_there_and_a_file_in_use_are_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="cache.disk_path"):
        DiskFile(tmp_path / "no" / "kv.tier", SHAPE, SECRET)
    file = DiskFile(tmp_path / "kv.tier", SHAPE, SECRET)
    with pytest.raises(ConfigError, match="kv.tier is in use"):
        DiskFile(tmp_path / "kv.tier", SHAPE, SECRET)
    file.close()
    with pytest.raises(ConfigError, match="cache.disk_bytes"):
        DiskFile(tmp_path / "kv.tier", SHAPE._replace(num_slots=1 << 40), SECRET)


def test_a_budget_is_kept():
    for budget in (0, 4096, 100_000, 1_000_001, 12345678):
        shape = Shape.within(budget, b"x" * 32, 8192)
        assert shape.num_slots == 0 or shape.file_bytes <= budget
        larger = shape._replace(num_slots=shape.num_slots + 2)
        assert larger.file_bytes > budget

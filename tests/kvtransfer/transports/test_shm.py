"""Stores of another process on one host: copied out of a mapping, or read if they could shrink."""

import fcntl
import os
import random

import pytest

from kvtransfer.staging import Slots
from kvtransfer.transports.shm import FileSource, readonly
from kvtransfer.transports.transport import Extent
from triptych.core.errors import TransferError

SIZE = 70_001
pytestmark = pytest.mark.usefixtures("no_leak")


@pytest.fixture(params=["sealed", "not sealed"])
def store(request):
    content = random.Random(1).randbytes(SIZE)
    if request.param == "sealed":
        slots = Slots(SIZE, 1)
        slots.view[:] = content
        fd = slots.fd
        yield fd, content
        slots.close()
    else:
        fd = os.memfd_create("test", os.MFD_CLOEXEC)
        os.write(fd, content)
        yield fd, content
        os.close(fd)


def test_bytes_arrive_however_both_sides_are_cut(store):
    fd, content = store
    source, ours = FileSource(readonly(fd)), memoryview(bytearray(40_000))
    parts = [ours[:7], ours[7:20_000], ours[30_000:35_001]]
    source.read([Extent(3, 11), Extent(45_000, 24_990)], parts)
    found = b"".join(parts)
    assert found == content[3:14] + content[45_000:69_990]
    assert not any(ours[20_000:30_000])
    source.close()


def test_only_a_sealed_store_is_mapped_and_nobody_can_write_to_it(store):
    fd, _ = store
    source = FileSource(readonly(fd))
    is_sealed = bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    assert (source.view is not None) == is_sealed
    assert source.view is None or source.view.readonly
    source.close()


def test_what_the_giver_writes_later_is_seen(store):
    fd, content = store
    source, ours = FileSource(readonly(fd)), memoryview(bytearray(4))
    source.read([Extent(100, 4)], [ours])
    assert ours == content[100:104]
    os.pwrite(fd, b"new!", 100)
    source.read([Extent(100, 4)], [ours])
    assert ours == b"new!"
    source.close()


def test_bytes_behind_the_end_are_refused(store):
    fd, _ = store
    source, ours = FileSource(readonly(fd)), memoryview(bytearray(10))
    with pytest.raises(TransferError, match="shorter"):
        source.read([Extent(SIZE - 9, 10)], [ours])
    source.close()

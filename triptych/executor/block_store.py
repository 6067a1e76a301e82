"""The memory of blocks: one tensor of ``(num_blocks * layout.num_shards, *layout.shape)``.

On a CPU it lies in an anonymous memfd that a peer on the same host may map; nothing of it outlives
the process. Knows bytes and shapes; does not know who owns which block.
"""

import fcntl
import mmap
import os
from collections.abc import Callable, Sequence

import msgspec
import torch

from triptych.core.errors import ConfigError
from triptych.core.layout import Layout
from triptych.executor.mirror import Mirror

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "uint8": torch.uint8,
    "int8": torch.uint8,
    "fp8": torch.uint8,
}
"""What a tensor of a store of ``Layout.dtype`` holds; of codes, bytes."""


class BlockStore:
    """Blocks of one layout. Implements ``core.ports.BlockMemory``.

    ``tensor`` has the shape ``(num_blocks * layout.num_shards, *layout.shape)``: the run of shard
    ``s`` of block ``b`` is ``b * layout.num_shards + s``. ``view`` are the same bytes on a CPU.
    On a GPU ``view`` is a pinned host copy (``executor.mirror``): ``stage`` fills its blocks from
    the device before they are sent, ``absorb`` carries received ones to it. ``fd`` is a descriptor
    of another process's store of the same layout, which is mapped then and not made. Raises
    ConfigError that names ``setting`` when the machine has no room.

    With ``shard`` the ranks have memory of their own: ``tensor`` has the runs of that one alone,
    (num_blocks, *layout.shape), and ``view`` those of all, in a memfd that all have mapped; their
    processes ``stage`` and ``absorb`` each its own.
    """

    _mirror: Mirror | None = None
    _pinned: int | None = None
    """Address of what is registered with CUDA."""

    def __init__(
        self,
        layout: Layout,
        num_blocks: int,
        *,
        device: str = "cpu",
        setting: str = "num_blocks",
        fd: int = -1,
        shard: int | None = None,
    ) -> None:
        self.layout = layout
        self.resident = layout if shard is None else msgspec.structs.replace(layout, num_shards=1)
        """The layout of what ``tensor`` holds."""
        self.num_blocks = num_blocks
        self.num_bytes = num_blocks * layout.block_bytes
        self.fd = -1
        self.tensor, self.view = torch.empty(0), memoryview(b"")
        _check_room(self.num_bytes, setting)
        try:
            if shard is not None:
                self._lie_apart(torch.device(device), fd, shard)
            elif torch.device(device).type == "cpu":
                flat = torch.frombuffer(self._map(fd), dtype=DTYPES[layout.dtype])
                self.tensor = flat.view(self._shape)
            else:
                self.tensor = self._made(device)
                host = torch.zeros(self.num_bytes, dtype=torch.uint8, pin_memory=True)
                self._mirror = Mirror(self._parts(self.tensor), self._parts(host, layout))
                self.view = memoryview(host.numpy().data)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError | torch.OutOfMemoryError):
                what = f"{setting}: no room for {self.num_bytes} bytes: {error}"
                raise ConfigError(what) from error
            raise

    def stage(
        self,
        blocks: Sequence[int],
        layers: range | None = None,
        then: Callable[[], None] | None = None,
    ) -> None:
        """See ``core.ports.BlockMemory``: nothing to copy on a CPU."""
        if self._mirror is not None:
            self._mirror.down(blocks, layers, then)
        elif then is not None:
            then()

    def absorb(self, blocks: Sequence[int]) -> None:
        """See ``core.ports.BlockMemory``: nothing to copy on a CPU."""
        if self._mirror is not None:
            self._mirror.up(blocks)

    def settle(self) -> None:
        """Return when all is told that ``stage`` was to tell. Raises what a ``then`` raised."""
        if self._mirror is not None:
            self._mirror.settle()

    def close(self) -> None:
        """Give the memory back. Idempotent; ``tensor`` and ``view`` are gone after it.

        Pages that somebody still refers to live until the last reference is dropped.
        """
        if self._mirror is not None:
            self._mirror.close()
            self._mirror = None
        if self._pinned is not None:
            torch.cuda.cudart().cudaHostUnregister(self._pinned)  # type: ignore[no-untyped-call]
            self._pinned = None
        self.tensor = torch.empty(0)
        self.view = memoryview(b"")
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @property
    def _shape(self) -> tuple[int, ...]:
        return self.num_blocks * self.resident.num_shards, *self.resident.shape

    def _made(self, device: str | torch.device) -> torch.Tensor:
        return torch.zeros(self._shape, dtype=DTYPES[self.layout.dtype], device=device)

    def _map(self, fd: int) -> mmap.mmap:
        """The memfd ``fd``, or one that is made; ``view`` are its bytes."""
        fd = fd if fd >= 0 else _create(self.layout.kind, self.num_bytes)
        memory = _map(fd, self.num_bytes)
        self.fd, self.view = fd, memoryview(memory)
        return memory

    def _parts(self, raw: torch.Tensor, layout: Layout | None = None) -> torch.Tensor:
        """Bytes as (blocks, shards, layers, bytes of a layer), of ``resident`` or ``layout``."""
        of = layout or self.resident
        flat = raw.view(self.num_blocks, -1).view(torch.uint8)
        return flat.view(self.num_blocks, of.num_shards, of.num_layers, -1)

    def _lie_apart(self, device: torch.device, fd: int, shard: int) -> None:
        """One shard on ``device``; see the class."""
        host = torch.frombuffer(self._map(fd), dtype=torch.uint8)
        if device.type == "cuda":
            with torch.cuda.device(device):
                at = host.data_ptr()
                done = torch.cuda.cudart().cudaHostRegister(at, self.num_bytes, 0)  # type: ignore[no-untyped-call]
                if int(done):
                    raise OSError(f"CUDA does not register it, error {int(done)}")
                self._pinned = at
        self.tensor = self._made(device)
        own = self._parts(host, self.layout)[:, shard : shard + 1]
        # Who asks the other ranks for a copy has waited for its own: they computed as much.
        self._mirror = Mirror(self._parts(self.tensor), own, follows=shard == 0)


def _check_room(num_bytes: int, setting: str) -> None:
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if num_bytes > installed:
        raise ConfigError(f"{setting}: {num_bytes} bytes do not fit into {installed} of memory")


def _create(kind: str, num_bytes: int) -> int:
    """A sealed memfd: its size is fixed, so a peer cannot pull it from under us."""
    fd = os.memfd_create(f"triptych-{kind}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, num_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except OSError:
        os.close(fd)
        raise
    return fd


def _map(fd: int, num_bytes: int) -> mmap.mmap:
    """All of a memfd, pre-faulted."""
    try:
        return mmap.mmap(fd, num_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    except OSError:
        os.close(fd)
        raise

"""vLLM's CPU backend as contestants: one server, or its encoder in a process of its own.

Flags are those that vLLM documents for CPUs; the encoder hands embeddings over in files, the way of
its own example, in memory where there is a folder that lies there. Whether to compile, and with how
many threads, is found by trial. Nothing of vLLM is imported: it lives in another environment.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from ctypes.util import find_library
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench.client import Target
from bench.peers.contestant import (
    AT_ONCE,
    GATHERED,
    Entrant,
    OverHttp,
    at_once,
    foreign,
    threads,
    told,
    versions,
)
from bench.peers.process import Process, is_alive
from bench.systems import SystemFailed, free_ports

_IN_MEMORY = Path("/dev/shm")
_OPENMP = "__KMP_REGISTERED_LIB_"


class Setting(NamedTuple):
    """What is tried."""

    is_eager: bool
    threads: int
    interval: int = 1
    """Tokens that are told together."""
    at_once: int = 0
    """Sequences, at most; 0: as many as there are clients."""

    @property
    def name(self) -> str:
        """For the table."""
        words = ["eager" if self.is_eager else "compiled", threads(self.threads)]
        words += [told(self.interval)] if self.interval > 1 else []
        return ", ".join([*words, *([at_once(self.at_once)] if self.at_once else [])])


class Place(NamedTuple):
    """Whose vLLM, which model, how many sequences at a time."""

    python: str
    model: Path
    max_seqs: int


class Server:
    """One instance of vLLM."""

    def __init__(self, name: str, place: Place, setting: Setting, more: tuple[str, ...]) -> None:
        (self.port,) = free_ports(1)
        self.words = (
            # Not `vllm serve`, which looks for a distribution of that name: the wheel has another.
            *(place.python, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(place.model.resolve())),
            *("--served-model-name", place.model.name, "--dtype", "float32"),
            *("--max-model-len", "2048", "--max-num-seqs", str(setting.at_once or place.max_seqs)),
            *("--limit-mm-per-prompt", '{"image":1,"video":0}'),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--uvicorn-log-level", "warning", "--disable-log-stats"),
            # Without it workers are killed at once, and what they have in shared memory stays.
            *("--shutdown-timeout", "10"),
            *(("--enforce-eager",) if setting.is_eager else ()),
            *("--stream-interval", str(setting.interval)),
            *more,
        )
        self.environment = {
            "OMP_NUM_THREADS": str(setting.threads),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            **_preloaded(place.python),
        }
        self._process = Process(name, self.words, {**foreign(), **self.environment})

    async def start(self) -> None:
        """Return at once."""
        await self._process.start()

    async def ready(self) -> Target:
        """Return when it answers."""
        target = Target("127.0.0.1", self.port, "")
        await self._process.ready(target, "/health")
        return target

    async def stop(self) -> None:
        """Stop it."""
        await self._process.stop()
        for left in _IN_MEMORY.glob(f"{_OPENMP}*"):
            # Intel's OpenMP leaves one, unmapped, for each process that is killed.
            owner = left.name.removeprefix(_OPENMP).partition("_")[0]
            if owner.isdigit() and not is_alive(int(owner)):
                left.unlink(missing_ok=True)


class Monolithic(OverHttp):
    """One server that does everything."""

    name = "vLLM"

    def __init__(self, place: Place, setting: Setting) -> None:
        super().__init__()
        self._server = Server(self.name, place, setting, ())
        self.told: Mapping[str, object] = _told(self._server)

    async def start(self) -> None:
        """Start it."""
        await self._server.start()
        self._target = await self._server.ready()

    async def stop(self) -> None:
        """Stop it."""
        self._target = None
        await self._server.stop()


class EncoderApart(OverHttp):
    """1E+1PD: an encoder, an instance that prefills and decodes, and a proxy in front."""

    name = "vLLM 1E+1PD"

    def __init__(self, place: Place, setting: Setting) -> None:
        super().__init__()
        memory = _IN_MEMORY if _IN_MEMORY.is_dir() else None
        self._folder = Path(tempfile.mkdtemp(prefix="bench-peers-", dir=memory))
        encoder = Server(
            f"{self.name}, encoder", place, setting,
            ("--no-enable-prefix-caching", *self._transfer("ec_producer")),
        )  # fmt: skip
        decoder = Server(f"{self.name}, PD", place, setting, self._transfer("ec_consumer"))
        self._servers = (encoder, decoder)
        (self._port,) = free_ports(1)
        places = [f"127.0.0.1:{port}" for port in (self._port, encoder.port, decoder.port)]
        words = [sys.executable, "-m", "bench.peers.proxy"]
        for option, at in zip(("--listen", "--encoder", "--decoder"), places, strict=True):
            words += [option, at]
        self._proxy = Process(f"{self.name}, proxy", words, {})
        self.told: Mapping[str, object] = {"E": _told(encoder), "PD": _told(decoder)}

    def _transfer(self, role: str) -> tuple[str, ...]:
        how = {
            "ec_connector": "ECExampleConnector",
            "ec_role": role,
            "ec_connector_extra_config": {"shared_storage_path": str(self._folder)},
        }
        return ("--ec-transfer-config", json.dumps(how))

    async def start(self) -> None:
        """Both instances at once, then the proxy."""
        for server in self._servers:
            await server.start()
        for server in self._servers:
            await server.ready()
        await self._proxy.start()
        target = Target("127.0.0.1", self._port, "")
        await self._proxy.ready(target, "/health")
        self._target = target

    async def stop(self) -> None:
        """Stop all three and throw the embeddings away."""
        self._target = None
        try:
            await self._proxy.stop()
            for server in self._servers:
                await server.stop()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)


def _told(server: Server) -> dict[str, object]:
    return {"command": server.words, "environment": server.environment}


def _preloaded(python: str) -> dict[str, str]:
    """Libraries that vLLM recommends to preload, where they are: Intel's OpenMP, which comes with
    its wheel, and tcmalloc."""
    openmp = Path(python).absolute().parent.parent / "lib" / "libiomp5.so"
    found = [str(openmp)] if openmp.exists() else []
    if malloc := find_library("tcmalloc_minimal"):
        found.insert(0, malloc)
    return {"LD_PRELOAD": ":".join(found)} if found else {}


async def entrants(model: Path, python: str, max_seqs: int) -> list[Entrant]:
    """Both ways of serving. Raises SystemFailed if ``python`` has no vLLM."""
    has = await versions(python, "vllm-cpu", "vllm", "torch", "transformers")
    if not {"vllm-cpu", "vllm"} & has.keys():
        raise SystemFailed(f"vllm: {python} has no vllm-cpu")
    place = Place(python, model, max_seqs)
    alone = [Setting(eager, count) for count in (1, 2) for eager in (False, True)]
    alone += [Setting(False, count, GATHERED) for count in (1, 2)]
    alone += [Setting(False, 2, GATHERED, AT_ONCE)]
    # Two instances share the cores.
    apart = [Setting(False, 1), Setting(True, 1), Setting(False, 1, GATHERED)]
    apart += [Setting(False, 2, GATHERED), Setting(False, 1, GATHERED, AT_ONCE)]
    return [
        Entrant("vLLM", {one.name: partial(Monolithic, place, one) for one in alone}, has),
        Entrant("vLLM 1E+1PD", {one.name: partial(EncoderApart, place, one) for one in apart}, has),
    ]

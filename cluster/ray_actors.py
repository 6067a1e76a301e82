"""Instances as Ray actors. THE one file that knows Ray.

Ray places, starts and kills; every word to an instance goes over its own gRPC server. Without an
address a private cluster is started for this process alone (loopback, token authentication, its
own scratch directory) and taken down with it. Import it after ``ray_environment.prepare``.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import signal
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import msgspec
import ray
import ray._private.worker
from ray.exceptions import RayActorError, RayError

from cluster.host import LAST_WORDS_S, Hosted, InstanceSpec, thread_environment
from cluster.node import Node
from cluster.remote import Served, connect
from cluster.roles import configs_of
from triptych.core import log, topology
from triptych.core.config import Config, TransferConfig
from triptych.core.errors import ConfigError, Unavailable
from triptych.core.ids import InstanceId
from triptych.core.lifecycle import Role, Stage
from triptych.wire.client import RemoteInstance

logger = logging.getLogger(__name__)

_STORE_BYTES = 80 * 2**20
"""Ray's object store, the smallest it takes: nothing of ours ever goes through it."""
_PLENTY = 4096
"""CPUs that a private cluster pretends to have; actors claim none, so this only has to be large."""
_SCRATCH = "triptych-ray-"
_NAMESPACE = "triptych"
_KILL_S = 10.0
_FAILURES = (RayError, RuntimeError, ValueError, OSError)
"""What Ray raises where it fails: its own errors, and plain ones when it is shut or misused."""


class _InstanceActor:
    """What runs in an actor's process: one served instance. Becomes an actor in ``start``."""

    def __init__(self, spec: bytes) -> None:
        self._spec = msgspec.msgpack.decode(spec, type=InstanceSpec)
        self._node: Node | None = None
        log.setup(self._spec.config.log, self._spec.id)

    async def start(self) -> bytes:
        """Build and serve; says where."""
        self._node = await Node.start(_on_this_node(self._spec))
        return msgspec.json.encode(Served(self._node.address, os.getpid()))

    async def wait(self) -> str:
        """Return when the instance broke."""
        if self._node is None:
            raise Unavailable("the instance was not started")
        return await self._node.wait()

    async def stop(self, drain_s: float) -> None:
        """Drain and free everything."""
        if self._node is not None:
            await self._node.close(drain_s)


def _on_this_node(spec: InstanceSpec) -> InstanceSpec:
    """In a cluster of several machines an instance listens on its node's address, unless told."""
    config = spec.config
    if not config.cluster.ray_address or config.transfer.host != TransferConfig().host:
        return spec
    host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    transfer = msgspec.structs.replace(config.transfer, host=host)
    return msgspec.structs.replace(spec, config=msgspec.structs.replace(config, transfer=transfer))


class HostedActor:
    """One actor and the connection to its instance."""

    def __init__(self, actor: Any, instance: RemoteInstance, pid: int, is_here: bool) -> None:
        self.instance = instance
        self.pid = pid
        self._actor = actor
        self._is_here = is_here
        self._died = actor.wait.remote()

    async def wait(self) -> str:
        """Return when Ray says that the actor died, or the actor that its instance broke."""
        try:
            return str(await self._died)
        except RayError as error:
            return f"its actor died: {type(error).__name__}"

    async def stop(self, drain_s: float) -> None:
        """Drain, then end the actor."""
        with contextlib.suppress(RayError, TimeoutError):
            async with asyncio.timeout(drain_s + _KILL_S):
                await self._actor.stop.remote(drain_s)
        await self.kill()

    async def kill(self) -> None:
        """Fence it off: SIGKILL where the process is ours to see, else by Ray's word."""
        can_tell = _kill(self._actor)
        if self._is_here:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        elif not can_tell:
            raise Unavailable("Ray cannot be told to end the actor")
        if can_tell:
            with contextlib.suppress(RayError, TimeoutError):
                async with asyncio.timeout(_KILL_S):
                    await self._died
        await self.instance.ended(LAST_WORDS_S)


class RayHost:
    """Starts actors in a private cluster or in the one at ``cluster.ray_address``."""

    def __init__(self, config: Config, thread: ThreadPoolExecutor, scratch: Path | None) -> None:
        self._is_closed = False
        self._thread = thread
        self._scratch = scratch
        self._gpus = gpus_per_rank(ray.cluster_resources().get("GPU", 0.0), config)  # type: ignore[no-untyped-call]

    @classmethod
    async def open(cls, config: Config) -> Self:
        """Start or join a Ray cluster. Raises ConfigError or Unavailable."""
        if ray.is_initialized():
            raise ConfigError("cluster.backend: this process is connected to Ray already")
        loop, scratch = asyncio.get_running_loop(), None
        # A thread of its own, because starting takes seconds, because off the main thread Ray
        # leaves our signals alone, and because Ray's processes die with the thread that began them.
        thread = ThreadPoolExecutor(1, "ray")
        if not config.cluster.ray_address:
            scratch = await loop.run_in_executor(thread, _scratch)
        try:
            await asyncio.shield(loop.run_in_executor(thread, _connect, config, scratch))
            return cls(config, thread, scratch)
        except _FAILURES as error:
            await _disconnect(thread, scratch)
            raise Unavailable(f"Ray did not start: {str(error).splitlines()[0]}") from error
        except BaseException:
            await _disconnect(thread, scratch)
            raise

    async def start(self, spec: InstanceSpec) -> Hosted:
        """Start an actor in its role's pool and return when its instance serves."""
        actor: Any = None
        try:
            actor = self._actor(spec)
            served = msgspec.json.decode(await actor.start.remote(), type=Served)
        except BaseException as error:
            if actor is not None:
                _kill(actor)
            if isinstance(error, _FAILURES):
                raise _cause(error, spec.id) from error
            raise
        return HostedActor(
            actor, connect(served.address, spec), served.pid, is_here=self._scratch is not None
        )

    def _actor(self, spec: InstanceSpec) -> Any:
        """A new actor in its role's pool, named for its incarnation."""
        options = {
            "name": f"{topology.name(frozenset(spec.role))}/{spec.id}/{secrets.token_hex(4)}",
            "num_cpus": 0,
            "num_gpus": self._gpus * _num_ranks(spec.config, frozenset(spec.role)),
            "max_restarts": 0,
            "max_concurrency": 64,
            "scheduling_strategy": "SPREAD",
        }
        return ray.remote(_InstanceActor).options(**options).remote(msgspec.msgpack.encode(spec))

    async def close(self) -> None:
        """Leave the cluster; a private one is taken down with its directory. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        await _disconnect(self._thread, self._scratch)


def _kill(actor: Any) -> bool:
    """End an actor by Ray's word; False when Ray itself is in no state to hear it."""
    if not ray.is_initialized():
        return False  # asked anything, Ray would start itself again
    try:
        ray.kill(actor, no_restart=True)
    except _FAILURES as error:
        logger.warning("Ray cannot end an actor: %s", error)
        return False
    return True


def _scratch() -> Path:
    """A fresh directory, its path short because Ray's sockets live in it. Those of processes that
    were killed before they could remove theirs are removed now."""
    for old in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*-*"):
        owner = old.name.removeprefix(_SCRATCH).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_SCRATCH}{os.getpid()}-"))


def _connect(config: Config, scratch: Path | None) -> None:
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    common: dict[str, Any] = {
        "log_to_driver": False,
        "configure_logging": False,
        "namespace": _NAMESPACE,
    }
    if scratch is None:
        threads = thread_environment(config)
        ray.init(address=config.cluster.ray_address, runtime_env={"env_vars": threads}, **common)
        return
    ray.init(
        include_dashboard=False,
        num_cpus=_PLENTY,
        object_store_memory=_STORE_BYTES,
        _temp_dir=str(scratch),
        _node_ip_address="127.0.0.1",
        **common,
    )
    # Ray prints a page on stdout for every worker that dies; the supervisor's line is enough.
    ray._private.worker.print_to_stdstream = _to_log


def _to_log(data: dict[str, Any], ignore_prefix: bool) -> None:  # noqa: ARG001
    """Stands in for Ray's printing of what its processes say."""
    logger.debug("Ray: %s", " ".join(data.get("lines", ())))


async def _disconnect(thread: ThreadPoolExecutor, scratch: Path | None) -> None:
    def leave() -> None:
        ray.shutdown()
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)

    await asyncio.get_running_loop().run_in_executor(thread, leave)
    thread.shutdown()


def gpus_per_rank(gpus: float, config: Config) -> float:
    """An equal part of so many ``gpus`` for each rank with memory of its own, and for each instance
    without such ranks; at most one, 0 on a CPU. Raises ConfigError if ranks would have to share."""
    if not gpus or config.model.device == "cpu":
        return 0.0
    configs = configs_of(config)
    places = topology.parse(config.cluster.topology)
    ranks = [(count, _num_ranks(configs[role], role)) for role, count in places]
    total = sum(count * each for count, each in ranks)
    if gpus >= total:
        return 1.0
    if any(each > 1 for _, each in ranks):
        raise ConfigError(
            f"model.parallel: {total} instances and ranks need a GPU each, Ray has {gpus:g}"
        )
    return int(gpus / total * 100) / 100


def _num_ranks(config: Config, role: Role) -> int:
    """With memory of their own, of the language model."""
    is_divided = config.model.parallel == "devices" and role & {Stage.PREFILL, Stage.DECODE}
    return config.model.tensor_parallel if is_divided else 1


def _cause(error: Exception, name: InstanceId) -> Exception:
    """What went wrong in the actor, without Ray's pages around it."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, ConfigError):
        return ConfigError(str(cause))
    if isinstance(error, RayActorError):
        return Unavailable(f"{name}: its actor died while it started")
    return Unavailable(f"{name} did not start: {cause or repr(error)}")

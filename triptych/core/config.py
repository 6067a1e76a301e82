"""The configuration: one frozen tree, one TOML file, ``section.key=value`` overrides.

Sections are named like the folders they configure. An unknown key or a wrong value fails with its
path. Every default is here; ``docs/config.md`` is written from this file.
"""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from triptych.core import topology
from triptych.core.addresses import is_directory, is_loopback
from triptych.core.config_kinds import Amount, Count, MessageBytes, Seconds
from triptych.core.config_model import ModelConfig
from triptych.core.config_router import AdmissionConfig, RouterConfig
from triptych.core.config_sparse import NONE, TILES, SparseConfig
from triptych.core.errors import ConfigError


class EngineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One language or vision engine."""

    token_budget: Amount = 512
    """Tokens computed in one step. 0: as many as ``slo`` allows by ``costs``; 512 without these."""
    chunk_tokens: Count = 256
    """Prefill chunk; boundaries are its multiples and the borders of items."""
    max_sequences: Count = 64
    """Sequences that one instance works on at once."""
    max_waiting: Amount = 256
    """Jobs that wait for a place behind those; more are refused."""
    order: str = "fcfs"
    """Who is admitted first: ``fcfs``, ``longest_prefix`` (most of its prompt cached), ``mlfq``,
    ``edf`` or ``slack``; see ``docs/policies.md``. With none does anybody wait for ever."""
    batching: str = "decode_first"
    """What a step takes first: ``decode_first``, ``fcfs``, ``sarathi``, ``splitfuse``, ``mlfq``,
    ``edf`` or ``slack``. It never changes an answer."""
    encode_order: str = "fcfs"
    """Which pictures are encoded first: ``fcfs``, ``twsrf`` (fewest left of its request, by time
    windows) or ``slack``."""
    split: str = "whole"
    """What of a GPU pictures may take where the language model computes there too: ``whole`` (two
    streams share it as they can) or ``sis`` (a slice of the multiprocessors, chosen for each step
    by ``costs``)."""
    image_budget_tokens: Amount = 2048
    """Visual tokens encoded in one step; a larger picture is encoded alone, and on a CPU each is.
    0: as many as ``slo`` allows and the encoder gains by, by ``costs``; 2048 without these."""
    slo: str = "interactive"
    """SLO class whose bounds a budget of 0 is searched for."""
    costs: str = ""
    """Cost file of what an instance's steps take, by which policies predict and budgets are
    searched; empty: a prior, and no search."""
    deterministic: bool = False
    """Cut prefix hits at chunk boundaries and compute one sequence or one picture at a time in a
    step, so that equal requests give bit-equal logits under any load."""
    steps_ahead: Count = 16
    """Decode steps that may be computed in a row, each token told while the next is computed. Work
    that comes ends such a run behind the step in flight. ``1``: the engine looks after every step.
    """
    stream_interval: Count = 1
    """Tokens of a sequence gather to this number before they are told, but for the first one: less
    work for the router, fewer and larger steps for the client."""
    overlap: bool = True
    """Compute a prompt's text while its pictures are being encoded and fetched. ``false`` computes
    nothing of a prompt before all its pictures are here; for comparison."""


class CacheConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """KV blocks and embedding blocks."""

    block_size: Count = 16
    """Tokens in a KV block."""
    kv_blocks: Count = 2048
    """KV blocks of a language instance."""
    kv_dtype: str = "auto"
    """What keys and values lie in memory as: ``auto``, numbers of ``model.dtype``; or codes of
    ``int8`` or ``fp8`` with a scale for each token and head (lossy, about half of 16 bits)."""
    embedding_block_size: Count = 16
    """Visual tokens in an embedding block."""
    embedding_blocks: Count = 1024
    """Embedding blocks of an encode or prefill instance."""
    prefix: bool = True
    """Keep KV of finished sequences for later ones with the same beginning."""
    host_bytes: Amount = 0
    """Host memory of an instance below its block stores, split by their sizes; 0: none."""
    disk_path: str = ""
    """Folder for the disk tier's files, one a block store; empty: no disk tier. What is in them
    is used again after a restart if ``cluster.secret`` is set and is the same."""
    disk_bytes: Amount = 0
    """Size of an instance's files there, made at once, split like ``host_bytes``."""
    at_rest: str = "raw"
    """How blocks lie in these tiers: ``raw``, or each row quantised as ``int8`` or ``fp8`` (lossy,
    half the bytes of 16-bit blocks)."""
    eviction: str = "lru"
    """What goes first when KV or embedding blocks run out: ``lru``, ``lfu`` (with ageing) or
    ``cost`` (uses times the work to compute it again over its bytes, with ageing)."""


class TransferConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Movement of blocks between instances."""

    transport: str = "auto"
    """``auto``, or the one way to use: ``shm``, ``tcp``, ``nixl``, ``nccl``."""
    wire: str = "raw"
    """``raw``, or each row quantised as ``int8`` or ``fp8`` on its way (lossy, half the bytes of
    16-bit blocks); what the giver does not know comes raw."""
    credits: Annotated[int, Meta(ge=2, le=256)] = 4
    """Messages of one instance that may be on their way to another at once; the same everywhere."""
    message_bytes: MessageBytes = 1_048_576
    """Layers that are ready one by one gather to this size before they leave; a layer of a block is
    whole."""
    max_message_bytes: MessageBytes = 33_554_432
    """What is ready leaves in messages of up to this size, as far as the link was measured to carry
    one in about 6 ms, else of up to ``message_bytes``."""
    layerwise: bool = True
    """Send the first layers of a prefill chunk while its later layers are computed."""
    host: str = "127.0.0.1"
    """Address that the instance's outbox listens on and announces."""
    digest: bool = True
    """Verify a digest (AES-GMAC) of every message's bytes."""
    heartbeat_s: Seconds = 0.5
    """A waiting sender says this often that it lives."""
    timeout_s: Seconds = 5.0
    """Silence after which a peer is taken for dead."""
    lease_s: Seconds = 10.0
    """How long offered blocks wait for a taker that never came."""
    guard_s: Seconds = 0.5
    """How long a picture or prompt that a taker waits for may find no room before the youngest
    offer that nobody fetches yet is revoked for it."""
    nixl_backend: str = "UCX"
    """NIXL plugin of the way ``nixl``: ``UCX``, or ``LIBFABRIC`` for EFA."""
    nccl_backend: str = "nccl"
    """Backend of torch.distributed of the way ``nccl``: ``nccl``, ``gloo`` or a registered one."""


class ClusterConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Instances and what hosts them."""

    topology: str = "E1,P1,D1"
    """Instances per role: ``E2,P1,D4``, ``EP1,D1``, ``EPD1`` ..."""
    roles: dict[str, tuple[str, ...]] = {}
    """Settings of one role's instances alone: ``{P = ["model.tensor_parallel=2"]}``."""
    backend: str = "ray"
    """``ray`` (actors), ``process`` (plain processes) or ``local`` (this process)."""
    ray_address: str = ""
    """Address of a running Ray cluster; empty starts a private one on this machine."""
    secret: str = ""
    """Shared secret of all instances; empty makes a fresh one at start."""
    start_timeout_s: Seconds = 120.0
    """How long an instance may take to load its part of the model."""
    heartbeat_s: Seconds = 0.5
    """An instance says this often on every session that it lives."""
    timeout_s: Seconds = 5.0
    """Silence after which an instance is fenced off and replaced."""
    drain_s: Seconds = 10.0
    """How long a stop waits for work in flight."""
    directory: str = "embedded"
    """Who tells routers what is cached where: ``embedded`` (the instances themselves) or a Redis or
    Valkey server, ``redis://...``, ``rediss://...`` or ``unix://...``, without options."""
    verify_idle: bool = True
    """Verify the invariants of every cache and engine whenever an instance falls idle; it breaks,
    and is replaced, where one does not hold. Takes milliseconds per thousand cached blocks."""
    directory_flush_s: Seconds = 0.05
    """Changes of caches are gathered for this long before they are told."""


class LimitsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds on everything a client can make large. Checked before the work."""

    max_requests: Count = 256
    """Accepted requests, waiting or running; more are refused with Retry-After."""
    max_requests_per_tenant: Count = 256
    """The same for each tenant."""
    max_body_bytes: Count = 33_554_432
    """Body of an HTTP request, message of a gRPC request."""
    max_messages: Count = 256
    """Turns of a conversation."""
    max_text_bytes: Count = 262_144
    """Text of all messages together."""
    max_pictures: Count = 16
    """Pictures of all messages together."""
    max_picture_bytes: Count = 16_777_216
    """One encoded picture."""
    max_picture_pixels: Count = 33_554_432
    """Width times height of one picture."""
    max_picture_side: Count = 16_384
    """The longer side of a picture."""
    max_aspect_ratio: Annotated[float, Meta(ge=1)] = 100.0
    """The longer side over the shorter one."""
    max_output_tokens: Count = 4096
    """Largest ``max_tokens``."""
    max_choices: Count = 8
    """Largest ``n``."""
    max_stop_strings: Amount = 8
    """Stop strings of a request."""
    max_stop_bytes: Count = 256
    """One stop string."""
    max_logprobs: Amount = 20
    """Alternatives reported with each token."""
    decode_memory_bytes: Count = 1_073_741_824
    """Address space of the child that decodes pictures, beyond its own start."""
    decode_timeout_s: Seconds = 10.0
    """How long decoding one picture may take."""
    decode_workers: Count = 1
    """Picture-decoding children of one encode instance."""
    default_deadline_s: Seconds = 120.0
    """Deadline of a request that names none."""
    max_deadline_s: Seconds = 600.0
    """Largest deadline that a request may name."""
    write_stall_s: Seconds = 30.0
    """A client that reads nothing for so long is cut off; a request must have arrived in it."""


class LogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Logging of every process."""

    level: str = "warning"
    """Least level that is written."""
    json: bool = False
    """A JSON object a line instead of text."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole tree."""

    model: ModelConfig = ModelConfig()
    engine: EngineConfig = EngineConfig()
    sparse: SparseConfig = SparseConfig()
    cache: CacheConfig = CacheConfig()
    transfer: TransferConfig = TransferConfig()
    cluster: ClusterConfig = ClusterConfig()
    limits: LimitsConfig = LimitsConfig()
    router: RouterConfig = RouterConfig()
    admission: AdmissionConfig = AdmissionConfig()
    log: LogConfig = LogConfig()


def load(
    path: Path | None = None,
    overrides: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Config:
    """Read ``path`` (TOML), then ``TRIPTYCH_SECTION__KEY`` of the environment, then ``overrides``.

    Raises ConfigError that names the offending key.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            tree = tomllib.loads(path.read_text())
        except OSError as error:
            raise ConfigError(f"config file {path}: {error.strerror}") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"config file {path}: {error}") from error
    for name, value in sorted((os.environ if environment is None else environment).items()):
        if match := re.fullmatch(r"TRIPTYCH_([A-Z]+)__([A-Z_]+)", name):
            _set(tree, f"{match[1]}.{match[2]}".lower(), value)
    return _made(tree, overrides)


def override(config: Config, overrides: Iterable[str]) -> Config:
    """``config`` with ``section.key=value`` set. Raises ConfigError that names the key."""
    return _made(msgspec.to_builtins(config), overrides)


def _made(tree: dict[str, Any], overrides: Iterable[str]) -> Config:
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator:
            raise ConfigError(f"--set {text}: expected section.key=value")
        _set(tree, key.strip(), value.strip())
    try:
        config = msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"config: {error}") from error
    _check(config)
    return config


def dump(config: Config) -> bytes:
    """The tree as bytes for another process of the cluster."""
    return msgspec.msgpack.encode(config)


def undump(data: bytes) -> Config:
    """The inverse of ``dump``."""
    return msgspec.msgpack.decode(data, type=Config)


def _set(tree: dict[str, Any], key: str, text: str) -> None:
    section, separator, name = key.partition(".")
    if not separator or not section or not name:
        raise ConfigError(f"{key}: expected section.key")
    tree.setdefault(section, {})[name] = _value(text)


def _value(text: str) -> Any:
    """A TOML value where it is one (numbers, true, quoted, tables), the bare text otherwise."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def _check(config: Config) -> None:
    """What types cannot say."""
    engine, choices = config.engine, _CHOICES
    topology.parse(config.cluster.topology)
    if 0 < engine.token_budget < engine.chunk_tokens:
        raise ConfigError("engine.token_budget: must be at least engine.chunk_tokens")
    if engine.deterministic and config.transfer.wire != "raw":
        raise ConfigError("transfer.wire: engine.deterministic needs raw, the others round")
    if engine.deterministic and config.cache.at_rest != "raw":
        raise ConfigError("cache.at_rest: engine.deterministic needs raw, the others round")
    if engine.deterministic and config.sparse.selector != NONE:
        raise ConfigError("sparse.selector: engine.deterministic needs none, chunks change choices")
    if config.sparse.tile not in TILES:
        raise ConfigError(f"sparse.tile: {config.sparse.tile} is not one of {TILES}")
    if config.router.allow_remote_pictures:
        raise ConfigError("router.allow_remote_pictures: remote pictures are not supported")
    if not is_directory(config.cluster.directory):  # and not shown: it may hold a password
        raise ConfigError(
            "cluster.directory: embedded, redis[s]://[USER:PASSWORD@]HOST[:PORT][/NUMBER] or"
            " unix://[USER:PASSWORD@]/PATH; nothing behind it; of a password, / ? # @ [ ] as %XX"
        )
    if not is_loopback(config.router.admin) and not config.router.admin_key:
        raise ConfigError("router.admin: an address beyond loopback needs router.admin_key")
    if bool(config.cache.disk_bytes) != bool(config.cache.disk_path):
        raise ConfigError("cache.disk_bytes: goes together with cache.disk_path")
    if config.cache.disk_bytes and not config.cache.host_bytes:
        raise ConfigError("cache.disk_bytes: a disk tier needs cache.host_bytes above it")
    for key, allowed in choices.items():
        section, _, name = key.partition(".")
        value = getattr(getattr(config, section), name)
        if value not in allowed:
            raise ConfigError(f"{key}: {value!r} is not one of {', '.join(allowed)}")


_CHOICES = {
    "model.dtype": ("auto", "float32", "bfloat16"),
    "model.kernels": ("auto", "plain", "native", "triton"),
    "model.parallel": ("inside", "processes", "devices"),
    "engine.order": ("fcfs", "longest_prefix", "mlfq", "edf", "slack"),
    "engine.batching": ("decode_first", "fcfs", "sarathi", "splitfuse", "mlfq", "edf", "slack"),
    "engine.encode_order": ("fcfs", "twsrf", "slack"),
    "engine.split": ("whole", "sis"),
    "engine.slo": ("interactive", "strict", "multi-image", "video"),
    "sparse.selector": (
        "none",
        "xattention",
        "block_filter",
        "vertical_slash",
        "modality",
        "local_and_history",
    ),
    "cache.kv_dtype": ("auto", "int8", "fp8"),
    "cache.at_rest": ("raw", "int8", "fp8"),
    "cache.eviction": ("lru", "lfu", "cost"),
    "transfer.transport": ("auto", "shm", "tcp", "nixl", "nccl"),
    "transfer.wire": ("raw", "int8", "fp8"),
    "cluster.backend": ("ray", "process", "local"),
    "router.placement": (
        "prefix_aware",
        "slo",
        "least_loaded",
        "modality",
        "one_encoder",
        "round_robin",
    ),
    "admission.policy": ("count", "slo"),
    "router.roles": ("static", "epdserve", "modserve", "elasticmm", "plan_ahead"),
    "log.level": ("debug", "info", "warning", "error"),
}

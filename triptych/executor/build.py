"""Wires executors for one role: only the weights and stores that its stages need.

Knows every concrete class of this package. Nobody else does.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import torch

from triptych.core.config import Config
from triptych.core.config_sparse import NONE
from triptych.core.errors import ConfigError
from triptych.core.layout import Layout
from triptych.core.lifecycle import Role, Stage
from triptych.executor.attention.sparse import sparse_of
from triptych.executor.block_store import DTYPES, BlockStore
from triptych.executor.device_ranks import default_backend
from triptych.executor.language import LanguageExecutor
from triptych.executor.models import config as model_config
from triptych.executor.models import decoder, oracle, registry
from triptych.executor.models.vision import VisionTower
from triptych.executor.models.weights import Weights
from triptych.executor.operations import PLAIN, Needs, operations
from triptych.executor.orders import Orders
from triptych.executor.pace import Pace
from triptych.executor.ranks import Ranks
from triptych.executor.team import Team, TeamStore
from triptych.executor.vision import TowerModel, VisionExecutor
from triptych.inputs import oracle_words
from triptych.inputs.model_card import ImageGeometry, load_card

AnyStore = TypeVar("AnyStore", bound=BlockStore)


@dataclass(slots=True, frozen=True)
class Executors:
    """What one instance computes with. ``None`` where its role has no such stage."""

    language: LanguageExecutor | None
    vision: VisionExecutor | None
    embeddings: BlockStore | None
    """The one embedding store that both executors of an instance share."""
    memory_bytes: dict[str, int]
    """Bytes of ``weights``, ``kv`` and ``embedding``."""
    team: Team | None = None
    """The other ranks' processes, where there are any."""

    @property
    def pids(self) -> tuple[int, ...]:
        """See ``core.ports.Executors``."""
        return () if self.team is None else self.team.pids

    def abandon(self) -> None:
        """See ``core.ports.Executors``."""
        if self.team is not None:
            self.team.close()

    def close(self) -> None:
        """End the followers, give the stores back."""
        if self.team is not None:
            self.team.close()
        if self.language is not None:
            self.language.memory.close()
        if self.embeddings is not None:
            self.embeddings.close()


def build(path: str, config: Config, role: Role, fingerprint: str) -> Executors:
    """The executors of an instance that serves ``role`` with the model in the folder ``path``, or
    with the oracle. Raises ConfigError that names the key, file or tensor that does not fit."""
    torch.set_num_threads(config.model.threads)
    geometry = load_card(path).image
    stores = _Stores(config, role, fingerprint)
    with ExitStack() as failing:
        failing.callback(stores.close)
        if path == oracle_words.NAME:
            made = _build_oracle(config, stores, geometry)
        else:
            made = _build_model(Path(path), config, stores, geometry)
        for store in (stores.kv, stores.embeddings):
            if store is not None and store.tensor.device.type == "cuda":
                # Weights are there, in whatever stream they are read.
                torch.cuda.synchronize(store.tensor.device)
        failing.pop_all()
    return made


def resolve(config: Config) -> tuple[str, str]:
    """Device and dtype for ``auto``: a GPU in bfloat16 if there is one, else a CPU in float32."""
    device, dtype = config.model.device, config.model.dtype
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ConfigError(f"model.device: {device!r} is not a device") from error
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(f"model.device: {device!r} cannot be used on this machine")
    if dtype == "auto":
        dtype = "bfloat16" if kind == "cuda" else "float32"
    return device, dtype


class _Stores:
    """What an instance of ``role`` holds beside its weights, as it is made."""

    def __init__(self, config: Config, role: Role, fingerprint: str) -> None:
        self.role = role
        self.fingerprint = fingerprint
        self.embeddings: BlockStore | None = None
        self.kv: BlockStore | None = None
        self.team: Team | None = None
        self._cache = config.cache

    def make_embeddings(self, dtype: str, width: int, device: str) -> None:
        """Where pictures are encoded or prefilled."""
        if self.role & {Stage.ENCODE, Stage.PREFILL}:
            size, count = self._cache.embedding_block_size, self._cache.embedding_blocks
            layout = Layout("embedding", self.fingerprint, dtype, (size, width), size)
            setting = "cache.embedding_blocks"
            self.embeddings = BlockStore(layout, count, device=device, setting=setting)

    def make_kv(
        self, layout: Layout, device: str, kind: type[AnyStore], shard: int | None = None
    ) -> AnyStore:
        """The KV store; with ``shard`` that of one rank with memory of its own."""
        count, setting = self._cache.kv_blocks, "cache.kv_blocks"
        self.kv = store = kind(layout, count, device=device, setting=setting, shard=shard)
        return store

    @property
    def readable(self) -> BlockStore | None:
        """The embeddings, where they are prefilled."""
        return self.embeddings if Stage.PREFILL in self.role else None

    def sizes(self, weights: int) -> dict[str, int]:
        """See ``Executors.memory_bytes``."""
        return {
            "weights": weights,
            "kv": self.kv.num_bytes if self.kv is not None else 0,
            "embedding": self.embeddings.num_bytes if self.embeddings is not None else 0,
        }

    def close(self) -> None:
        """Give it all back; nobody writes to a store that is."""
        for each in (self.team, self.kv, self.embeddings):
            if each is not None:
                each.close()


def _build_model(
    folder: Path, config: Config, stores: _Stores, geometry: ImageGeometry
) -> Executors:
    device, dtype = resolve(config)
    spec = registry.read_spec(model_config.read(folder))
    _check_geometry(spec.vision, geometry)
    stores.make_embeddings(dtype, spec.vision.out_size, device)
    language = vision = None
    needs = Needs(
        device=device,
        dtype=dtype,
        threads=config.model.threads,
        text_head=spec.text.head_dim,
        vision_head=spec.vision.hidden_size // spec.vision.num_heads,
        block_size=config.cache.block_size,
        kv_dtype=config.cache.kv_dtype,
    )
    if _is_divided(config, "processes") and config.model.kernels == "triton":
        raise ConfigError("model.kernels: ranks in processes compute on a CPU, without Triton")
    made_of = operations(config.model.kernels, needs, deterministic=config.engine.deterministic)
    with Weights(folder, dtype=DTYPES[dtype], device=device, operations=made_of) as weights:
        if stores.role & {Stage.PREFILL, Stage.DECODE}:
            layout = decoder.kv_layout(
                spec.text,
                block_size=config.cache.block_size,
                dtype=dtype if config.cache.kv_dtype == "auto" else config.cache.kv_dtype,
                model=stores.fingerprint,
                num_shards=config.model.tensor_parallel,
            )
            orders = _orders(folder, config, layout, dtype, device, made_of.name)
            if _is_divided(config, "devices"):
                memory: BlockStore = _apart(stores, orders, config)
            else:
                memory = stores.make_kv(layout, device, BlockStore)
                if _is_divided(config, "processes"):
                    stores.team = _team(orders, memory, config)
            ranks = stores.team or Ranks(layout.num_shards)
            sparse = sparse_of(config.sparse)
            model = decoder.Decoder(spec, weights, memory, stores.readable, ranks, sparse)
            language = LanguageExecutor(
                model,
                memory,
                stores.readable,
                made_of.draw,
                # Sums of several ranks are PyTorch's: their steps are not recorded.
                frees_lock=made_of is not PLAIN and layout.num_shards == 1,
                pace=_pace(config, device),
            )
        if Stage.ENCODE in stores.role:
            tower = TowerModel(VisionTower(spec.vision, weights), geometry)
            vision = _vision(tower, config, stores, geometry)
    num_bytes = weights.num_bytes + (stores.team.ready() if stores.team is not None else 0)
    return Executors(language, vision, stores.embeddings, stores.sizes(num_bytes), stores.team)


def _vision(
    model: TowerModel, config: Config, stores: _Stores, geometry: ImageGeometry
) -> VisionExecutor:
    """What encodes; beside a language model it has a part of a GPU, or yields on a CPU."""
    assert stores.embeddings is not None
    is_beside = bool(stores.role & {Stage.PREFILL, Stage.DECODE})
    is_divided = is_beside and config.engine.split != "whole"
    is_cpu = stores.embeddings.tensor.device.type == "cpu"
    nice = _PICTURES_NICE if is_beside and is_cpu else 0
    share = config.model.vision_share
    return VisionExecutor(
        model, stores.embeddings, geometry, share, is_divided=is_divided, nice=nice
    )


_PICTURES_NICE = 10
"""Of the thread that encodes where the language model computes on the same cores."""


def _pace(config: Config, device: str) -> Pace | None:
    gap_s = config.model.decode_gap_s
    return Pace(gap_s) if gap_s and torch.device(device).type == "cpu" else None


def _is_divided(config: Config, parallel: str) -> bool:
    return config.model.parallel == parallel and config.model.tensor_parallel > 1


def _orders(
    folder: Path, config: Config, layout: Layout, dtype: str, device: str, kernels: str
) -> Orders:
    """What all followers have in common, where there are any."""
    return Orders(
        path=str(folder),
        dtype=dtype,
        kernels=kernels,
        rank=1,
        threads=config.model.threads,
        layout=layout,
        num_blocks=config.cache.kv_blocks,
        store=-1,
        board=-1,
        peers=(),
        timeout_s=config.cluster.timeout_s,
        sparse=config.sparse,
        deterministic=config.engine.deterministic,
        device=device,
    )


def _team(orders: Orders, memory: BlockStore, config: Config) -> Team:
    """The other ranks, which load their weights while we load ours."""
    if memory.fd < 0:
        raise ConfigError(
            "model.parallel: processes share the KV store's memory, which those on"
            f" {memory.tensor.device} cannot; devices do not"
        )
    return Team(orders, memory, config.cluster.start_timeout_s)


def _apart(stores: _Stores, orders: Orders, config: Config) -> TeamStore:
    """Ranks with memory of their own."""
    count, at = orders.layout.num_shards, torch.device(orders.device)
    if at.type == "cuda" and (at.index or 0) + count > torch.cuda.device_count():
        raise ConfigError(
            f"model.tensor_parallel: {count} ranks from {orders.device} on need as many GPUs,"
            f" {torch.cuda.device_count()} are here"
        )
    memory = stores.make_kv(orders.layout, orders.device, TeamStore, shard=0)
    orders = msgspec.structs.replace(orders, backend=default_backend(at))
    stores.team = Team(orders, memory, config.cluster.start_timeout_s)
    memory.others = stores.team.copy
    return memory


def _build_oracle(config: Config, stores: _Stores, geometry: ImageGeometry) -> Executors:
    stores.make_embeddings("uint8", oracle.WIDTH, "cpu")
    language = vision = None
    if stores.role & {Stage.PREFILL, Stage.DECODE}:
        if config.model.parallel != "inside" and config.model.tensor_parallel > 1:
            raise ConfigError("model.parallel: the oracle computes nothing that processes could")
        if config.sparse.selector != NONE:
            raise ConfigError("sparse.selector: the oracle has no attention")
        if config.engine.split != "whole":
            raise ConfigError("engine.split: the oracle computes nothing to divide a GPU for")
        if config.cache.kv_dtype != "auto":
            raise ConfigError("cache.kv_dtype: every bit of the oracle's KV counts")
        layout = oracle.kv_layout(
            block_size=config.cache.block_size,
            model=stores.fingerprint,
            num_shards=config.model.tensor_parallel,
        )
        memory = stores.make_kv(layout, "cpu", BlockStore)
        model = oracle.OracleLanguage(memory, stores.readable)
        language = LanguageExecutor(model, memory, stores.readable, pace=_pace(config, "cpu"))
    if Stage.ENCODE in stores.role and stores.embeddings is not None:
        vision = VisionExecutor(oracle.OracleVision(), stores.embeddings, geometry)
    return Executors(language, vision, stores.embeddings, stores.sizes(0))


def _check_geometry(spec: model_config.VisionSpec, geometry: ImageGeometry) -> None:
    for name in ("patch_size", "merge_size", "temporal_patch_size"):
        if getattr(spec, name) != getattr(geometry, name):
            raise ConfigError(
                f"model.path: the preprocessor's {name} {getattr(geometry, name)} is not the"
                f" vision tower's {getattr(spec, name)}"
            )

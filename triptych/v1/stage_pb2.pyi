# mypy: disable-error-code=type-arg
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Stage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAGE_UNSPECIFIED: _ClassVar[Stage]
    STAGE_ENCODE: _ClassVar[Stage]
    STAGE_PREFILL: _ClassVar[Stage]
    STAGE_DECODE: _ClassVar[Stage]
STAGE_UNSPECIFIED: Stage
STAGE_ENCODE: Stage
STAGE_PREFILL: Stage
STAGE_DECODE: Stage

class Accepted(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class JobHeader(_message.Message):
    __slots__ = ("id", "session", "epoch", "budget_s", "salt", "slo_ttft_s", "slo_tpot_s", "priority", "later_s")
    ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BUDGET_S_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    SLO_TTFT_S_FIELD_NUMBER: _ClassVar[int]
    SLO_TPOT_S_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    LATER_S_FIELD_NUMBER: _ClassVar[int]
    id: str
    session: str
    epoch: int
    budget_s: float
    salt: bytes
    slo_ttft_s: float
    slo_tpot_s: float
    priority: int
    later_s: float
    def __init__(self, id: _Optional[str] = ..., session: _Optional[str] = ..., epoch: _Optional[int] = ..., budget_s: _Optional[float] = ..., salt: _Optional[bytes] = ..., slo_ttft_s: _Optional[float] = ..., slo_tpot_s: _Optional[float] = ..., priority: _Optional[int] = ..., later_s: _Optional[float] = ...) -> None: ...

class Item(_message.Message):
    __slots__ = ("key", "offset", "num_tokens", "grid")
    KEY_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GRID_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    offset: int
    num_tokens: int
    grid: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, key: _Optional[bytes] = ..., offset: _Optional[int] = ..., num_tokens: _Optional[int] = ..., grid: _Optional[_Iterable[int]] = ...) -> None: ...

class EncodeJob(_message.Message):
    __slots__ = ("header", "item", "data", "format", "handle")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    header: JobHeader
    item: Item
    data: bytes
    format: str
    handle: str
    def __init__(self, header: _Optional[_Union[JobHeader, _Mapping]] = ..., item: _Optional[_Union[Item, _Mapping]] = ..., data: _Optional[bytes] = ..., format: _Optional[str] = ..., handle: _Optional[str] = ...) -> None: ...

class Endpoint(_message.Message):
    __slots__ = ("host", "port", "path", "machine", "ways")
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    MACHINE_FIELD_NUMBER: _ClassVar[int]
    WAYS_FIELD_NUMBER: _ClassVar[int]
    host: str
    port: int
    path: str
    machine: str
    ways: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, host: _Optional[str] = ..., port: _Optional[int] = ..., path: _Optional[str] = ..., machine: _Optional[str] = ..., ways: _Optional[_Iterable[str]] = ...) -> None: ...

class TransferRef(_message.Message):
    __slots__ = ("handle", "epoch", "instance", "endpoint", "layout", "num_tokens")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    handle: str
    epoch: int
    instance: str
    endpoint: Endpoint
    layout: str
    num_tokens: int
    def __init__(self, handle: _Optional[str] = ..., epoch: _Optional[int] = ..., instance: _Optional[str] = ..., endpoint: _Optional[_Union[Endpoint, _Mapping]] = ..., layout: _Optional[str] = ..., num_tokens: _Optional[int] = ...) -> None: ...

class PromisedItem(_message.Message):
    __slots__ = ("item", "ref")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    item: Item
    ref: TransferRef
    def __init__(self, item: _Optional[_Union[Item, _Mapping]] = ..., ref: _Optional[_Union[TransferRef, _Mapping]] = ...) -> None: ...

class Prompt(_message.Message):
    __slots__ = ("token_ids", "items")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    items: _containers.RepeatedCompositeFieldContainer[Item]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "logprobs")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    logprobs: int
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., seed: _Optional[int] = ..., logprobs: _Optional[int] = ...) -> None: ...

class StopRule(_message.Message):
    __slots__ = ("max_tokens", "token_ids", "strings")
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    STRINGS_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    strings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, max_tokens: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., strings: _Optional[_Iterable[str]] = ...) -> None: ...

class LanguageJob(_message.Message):
    __slots__ = ("header", "prompt", "sampling", "stop", "generated", "items", "kv", "publish", "prefix")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    GENERATED_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    header: JobHeader
    prompt: Prompt
    sampling: Sampling
    stop: StopRule
    generated: _containers.RepeatedScalarFieldContainer[int]
    items: _containers.RepeatedCompositeFieldContainer[PromisedItem]
    kv: TransferRef
    publish: str
    prefix: TransferRef
    def __init__(self, header: _Optional[_Union[JobHeader, _Mapping]] = ..., prompt: _Optional[_Union[Prompt, _Mapping]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., stop: _Optional[_Union[StopRule, _Mapping]] = ..., generated: _Optional[_Iterable[int]] = ..., items: _Optional[_Iterable[_Union[PromisedItem, _Mapping]]] = ..., kv: _Optional[_Union[TransferRef, _Mapping]] = ..., publish: _Optional[str] = ..., prefix: _Optional[_Union[TransferRef, _Mapping]] = ...) -> None: ...

class LendJob(_message.Message):
    __slots__ = ("header", "prompt", "handle")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    header: JobHeader
    prompt: Prompt
    handle: str
    def __init__(self, header: _Optional[_Union[JobHeader, _Mapping]] = ..., prompt: _Optional[_Union[Prompt, _Mapping]] = ..., handle: _Optional[str] = ...) -> None: ...

class OpenRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    def __init__(self, session: _Optional[str] = ...) -> None: ...

class Alternative(_message.Message):
    __slots__ = ("id", "logprob")
    ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    id: int
    logprob: float
    def __init__(self, id: _Optional[int] = ..., logprob: _Optional[float] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("index", "id", "logprob", "top")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    index: int
    id: int
    logprob: float
    top: _containers.RepeatedCompositeFieldContainer[Alternative]
    def __init__(self, index: _Optional[int] = ..., id: _Optional[int] = ..., logprob: _Optional[float] = ..., top: _Optional[_Iterable[_Union[Alternative, _Mapping]]] = ...) -> None: ...

class Steps(_message.Message):
    __slots__ = ("count", "seconds", "tokens", "pairs", "decodes", "context")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    DECODES_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    count: int
    seconds: float
    tokens: int
    pairs: int
    decodes: int
    context: int
    def __init__(self, count: _Optional[int] = ..., seconds: _Optional[float] = ..., tokens: _Optional[int] = ..., pairs: _Optional[int] = ..., decodes: _Optional[int] = ..., context: _Optional[int] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("queue_s", "transfer_s", "compute_s", "cached_tokens", "prefill_s", "first_steps", "later_steps")
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_S_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEPS_FIELD_NUMBER: _ClassVar[int]
    LATER_STEPS_FIELD_NUMBER: _ClassVar[int]
    queue_s: float
    transfer_s: float
    compute_s: float
    cached_tokens: int
    prefill_s: float
    first_steps: Steps
    later_steps: Steps
    def __init__(self, queue_s: _Optional[float] = ..., transfer_s: _Optional[float] = ..., compute_s: _Optional[float] = ..., cached_tokens: _Optional[int] = ..., prefill_s: _Optional[float] = ..., first_steps: _Optional[_Union[Steps, _Mapping]] = ..., later_steps: _Optional[_Union[Steps, _Mapping]] = ...) -> None: ...

class Encoded(_message.Message):
    __slots__ = ("job", "timing")
    JOB_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    job: str
    timing: Timing
    def __init__(self, job: _Optional[str] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ...) -> None: ...

class Tokens(_message.Message):
    __slots__ = ("job", "tokens")
    JOB_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    job: str
    tokens: _containers.RepeatedCompositeFieldContainer[Token]
    def __init__(self, job: _Optional[str] = ..., tokens: _Optional[_Iterable[_Union[Token, _Mapping]]] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("job", "reason", "timing")
    JOB_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    job: str
    reason: str
    timing: Timing
    def __init__(self, job: _Optional[str] = ..., reason: _Optional[str] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("job", "code", "detail", "blame")
    JOB_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    BLAME_FIELD_NUMBER: _ClassVar[int]
    job: str
    code: str
    detail: str
    blame: str
    def __init__(self, job: _Optional[str] = ..., code: _Optional[str] = ..., detail: _Optional[str] = ..., blame: _Optional[str] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("encoded", "tokens", "finished", "failed")
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    encoded: Encoded
    tokens: Tokens
    finished: Finished
    failed: Failed
    def __init__(self, encoded: _Optional[_Union[Encoded, _Mapping]] = ..., tokens: _Optional[_Union[Tokens, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ...) -> None: ...

class EventBatch(_message.Message):
    __slots__ = ("events", "caches", "links")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    CACHES_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    caches: _containers.RepeatedCompositeFieldContainer[CacheBatch]
    links: _containers.RepeatedCompositeFieldContainer[LinkReport]
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., caches: _Optional[_Iterable[_Union[CacheBatch, _Mapping]]] = ..., links: _Optional[_Iterable[_Union[LinkReport, _Mapping]]] = ...) -> None: ...

class CacheChange(_message.Message):
    __slots__ = ("kind", "tier", "is_stored", "keys")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    IS_STORED_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    tier: str
    is_stored: bool
    keys: bytes
    def __init__(self, kind: _Optional[str] = ..., tier: _Optional[str] = ..., is_stored: _Optional[bool] = ..., keys: _Optional[bytes] = ...) -> None: ...

class CacheBatch(_message.Message):
    __slots__ = ("sequence", "is_snapshot", "changes")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    IS_SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    is_snapshot: bool
    changes: _containers.RepeatedCompositeFieldContainer[CacheChange]
    def __init__(self, sequence: _Optional[int] = ..., is_snapshot: _Optional[bool] = ..., changes: _Optional[_Iterable[_Union[CacheChange, _Mapping]]] = ...) -> None: ...

class LinkReport(_message.Message):
    __slots__ = ("giver", "transport", "latency_s", "bytes_per_s", "failovers")
    GIVER_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    LATENCY_S_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    FAILOVERS_FIELD_NUMBER: _ClassVar[int]
    giver: str
    transport: str
    latency_s: float
    bytes_per_s: float
    failovers: int
    def __init__(self, giver: _Optional[str] = ..., transport: _Optional[str] = ..., latency_s: _Optional[float] = ..., bytes_per_s: _Optional[float] = ..., failovers: _Optional[int] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Layout(_message.Message):
    __slots__ = ("kind", "model", "dtype", "shape", "block_size", "num_shards")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_SHARDS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    model: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    block_size: int
    num_shards: int
    def __init__(self, kind: _Optional[str] = ..., model: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., block_size: _Optional[int] = ..., num_shards: _Optional[int] = ...) -> None: ...

class Description(_message.Message):
    __slots__ = ("id", "role", "model", "transfer", "kv", "embedding", "num_kv_blocks", "num_embedding_blocks", "max_tokens", "pid", "memory_bytes")
    class MemoryBytesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    NUM_KV_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_EMBEDDING_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    id: str
    role: _containers.RepeatedScalarFieldContainer[Stage]
    model: str
    transfer: Endpoint
    kv: Layout
    embedding: Layout
    num_kv_blocks: int
    num_embedding_blocks: int
    max_tokens: int
    pid: int
    memory_bytes: _containers.ScalarMap[str, int]
    def __init__(self, id: _Optional[str] = ..., role: _Optional[_Iterable[_Union[Stage, str]]] = ..., model: _Optional[str] = ..., transfer: _Optional[_Union[Endpoint, _Mapping]] = ..., kv: _Optional[_Union[Layout, _Mapping]] = ..., embedding: _Optional[_Union[Layout, _Mapping]] = ..., num_kv_blocks: _Optional[int] = ..., num_embedding_blocks: _Optional[int] = ..., max_tokens: _Optional[int] = ..., pid: _Optional[int] = ..., memory_bytes: _Optional[_Mapping[str, int]] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("jobs",)
    JOBS_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, jobs: _Optional[_Iterable[str]] = ...) -> None: ...

class CancelResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResyncRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    def __init__(self, session: _Optional[str] = ...) -> None: ...

class ResyncResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CensusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Holding(_message.Message):
    __slots__ = ("kind", "owner", "count")
    KIND_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    owner: str
    count: int
    def __init__(self, kind: _Optional[str] = ..., owner: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class CensusResponse(_message.Message):
    __slots__ = ("instance", "held", "totals")
    class TotalsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    TOTALS_FIELD_NUMBER: _ClassVar[int]
    instance: str
    held: _containers.RepeatedCompositeFieldContainer[Holding]
    totals: _containers.ScalarMap[str, int]
    def __init__(self, instance: _Optional[str] = ..., held: _Optional[_Iterable[_Union[Holding, _Mapping]]] = ..., totals: _Optional[_Mapping[str, int]] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("timeout_s",)
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    timeout_s: float
    def __init__(self, timeout_s: _Optional[float] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("is_idle",)
    IS_IDLE_FIELD_NUMBER: _ClassVar[int]
    is_idle: bool
    def __init__(self, is_idle: _Optional[bool] = ...) -> None: ...

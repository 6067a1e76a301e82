"""What passes between stages: jobs into a stage, promises of bytes between two stages.

A promise (``TransferRef``) is made by the router when it dispatches the producing job, so the
consuming job can start at once on what arrives. Knows no transport, no queue, no tensor.
"""

import msgspec

from triptych.core.ids import Handle, InstanceId, JobId, SessionId
from triptych.core.request import Item, Prompt, Sampling, StopRule


class Endpoint(msgspec.Struct, frozen=True):
    """Where an instance's outbox listens. A field that is empty or 0 means: not offered."""

    host: str = ""
    port: int = 0
    path: str = ""
    """Abstract Unix socket of the same host, without its leading NUL: the way of shared memory."""
    machine: str = ""
    """Boot id of the machine; shared memory works only between equal ones."""
    ways: tuple[str, ...] = ()
    """Further transports that the outbox serves over those addresses (``nixl``, ``nccl``)."""


class TransferRef(msgspec.Struct, frozen=True):
    """A promise: ``instance`` will offer blocks of ``layout`` under ``handle``, once, to one taker.

    The handle is a secret; it never appears in a log or an error.
    """

    handle: Handle
    epoch: int
    instance: InstanceId
    endpoint: Endpoint
    layout: str
    """Fingerprint of the producer's block layout."""
    num_tokens: int
    """Tokens that the finished transfer covers."""


class PromisedItem(msgspec.Struct, frozen=True):
    """A visual item of a prompt and where its embedding will come from."""

    item: Item
    ref: TransferRef | None
    """None: nobody encodes it, because its KV or its embedding is believed to be cached where it is
    needed. Where that is not so, the job ends with StaleCache."""


class JobHeader(msgspec.Struct, frozen=True):
    """What every job carries."""

    id: JobId
    session: SessionId
    """The event stream that hears of this job; when it breaks, the job is cancelled."""
    epoch: int
    """Attempt of the request, from 0. A peer that has seen a later epoch refuses this one."""
    budget_s: float
    """Seconds left until the request's deadline, measured when the job was sent."""
    salt: bytes = b""
    """The tenant's cache salt."""
    slo_ttft_s: float | None = None
    """Seconds left, when the job was sent, until the request's next token is due by its SLO: the
    first, or the one behind those that were streamed. Negative: late. None: no bound."""
    slo_tpot_s: float | None = None
    """Bound on the mean gap between the tokens behind the first. None: no bound."""
    priority: int = 0
    """Larger goes first, where the policy asks."""
    later_s: float = 0.0
    """Predicted seconds of the request's stages behind this job, up to the next token there."""


class EncodeJob(msgspec.Struct, frozen=True):
    """Turn one picture into visual tokens and offer them under ``handle``."""

    header: JobHeader
    item: Item
    data: bytes
    """The picture as it came: encoded bytes, limits already checked at the door."""
    format: str
    handle: Handle


class LanguageJob(msgspec.Struct, frozen=True):
    """Work of a language instance: bring a sequence to its next tokens.

    As a *prefill* job (``publish`` set) it computes the KV of ``prompt`` and ``generated``, draws
    one token and offers the KV under ``publish``. As a *decode* job it streams tokens until the
    stop rule holds; its KV comes from ``kv`` if that is set (prefill elsewhere), and is computed
    here otherwise, from ``items`` (the instance is both).
    """

    header: JobHeader
    prompt: Prompt
    sampling: Sampling
    stop: StopRule
    generated: tuple[int, ...] = ()
    """Tokens drawn by earlier attempts; they count towards ``max_tokens``."""
    items: tuple[PromisedItem, ...] = ()
    kv: TransferRef | None = None
    publish: Handle | None = None
    prefix: TransferRef | None = None
    """KV of the leading tokens that another instance lends, for a job that computes its own KV.
    What does not come is computed."""


class LendJob(msgspec.Struct, frozen=True):
    """Offer the cached KV of ``prompt``, which is full blocks, under ``handle`` to another
    instance; all of it or nothing."""

    header: JobHeader
    prompt: Prompt
    handle: Handle


Job = EncodeJob | LanguageJob | LendJob


class FirstToken(msgspec.Struct, frozen=True):
    """What travels behind the last KV block: the token that prefill drew."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()

"""What came of a run, live or simulated: one row a request, and what the instances did meanwhile.

The one input of every table, plot and report. Times are seconds since the start of the run. Knows
no server and no simulator.
"""

import msgspec


class Row(msgspec.Struct, frozen=True):
    """One request that arrived, whatever became of it."""

    id: str
    arrival_s: float
    slo: str
    """Name of the class; ``ttft_slo_s`` and ``tpot_slo_s`` are its bounds (None: no bound)."""
    ttft_slo_s: float | None
    tpot_slo_s: float | None
    num_images: int
    image_tokens: int
    prompt_tokens: int
    """All of them, visual ones included."""
    status: str
    """``ok``, ``refused``, ``failed``, ``timeout`` or ``cancelled``."""
    end_s: float
    code: str = ""
    """Of the error, if there is one."""
    token_times_s: tuple[float, ...] = ()
    """When each output token reached the client side."""
    cached_tokens: int = 0
    tenant: str = "public"
    session: str = ""
    turn: int = 0
    attempts: int = 1
    route: tuple[str, ...] = ()
    """Instances that worked for it."""
    phases: dict[str, float] = {}
    """Where the time went, seconds: ``queue``, ``encode``, ``encode_transfer``, ``prefill``,
    ``kv_transfer``, ``decode``; empty where the server does not say."""


class Busy(msgspec.Struct, frozen=True):
    """An instance computed (or moved bytes) without a pause."""

    instance: str
    what: str
    """``encode``, ``prefill``, ``decode``, ``mixed``, ``transfer``, ``load``."""
    start_s: float
    end_s: float
    num_jobs: int = 1
    num_tokens: int = 0


class Queue(msgspec.Struct, frozen=True):
    """How much an instance had to do at one moment."""

    instance: str
    at_s: float
    waiting: int
    running: int


class Change(msgspec.Struct, frozen=True):
    """Something happened to an instance: a role, a death, a start, a slow-down."""

    instance: str
    at_s: float
    what: str
    """``draining`` (for another role), ``role``, ``lost``, ``started``, ``slowed``, ``recovered``,
    ``refused``."""
    detail: str = ""


class Run(msgspec.Struct, frozen=True):
    """One system under one workload at one rate with one seed."""

    system: str
    """What served: a name a person would put into a legend."""
    workload: str
    rate: float
    """Requests offered per second."""
    seed: int
    num_gpus: float
    duration_s: float
    """Of arrivals."""
    rows: tuple[Row, ...]
    warmup_s: float = 0.0
    """Requests that arrived before this count nowhere."""
    busy: tuple[Busy, ...] = ()
    queues: tuple[Queue, ...] = ()
    changes: tuple[Change, ...] = ()
    joules: float | None = None
    """Energy of all GPUs, where a power model is known."""
    late_p99_s: float = 0.0
    """How late the measuring client itself was; 0 in a simulator."""
    invalid: str = ""
    """Why its figures must not be used; empty: they may."""
    notes: dict[str, str] = {}
    """What a reader should know: how text was calibrated, the server's version, the command."""

"""What surrounds an instance's steps: doors, router, wake-ups, pictures, transfers.

Measured by ``triptych profile`` and kept in a card beside the costs of steps. Values only.
"""

import msgspec


class Handling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a process does for requests that it does not compute: seconds of one core."""

    request_s: float = 0.0
    """For a request."""
    picture_s: float = 0.0
    """For each of its pictures, more."""
    text_s: float = 0.0
    """For each text token of its prompt, more: templates, tokenising."""
    job_s: float = 0.0
    """For each job of a request at an instance: sent (a router), taken (an instance)."""
    batch_s: float = 0.0
    """For each message of events between instance and router; of a client, for each time that
    tokens wake it."""
    token_s: float = 0.0
    """For each output token."""
    ended_s: float = 0.0
    """For each request, of an instance for each job, when its answer is over: nobody waits for it,
    but for those who come next."""


class Overheads(msgspec.Struct, frozen=True, kw_only=True):
    """Of one machine. Work is in seconds of one core that does nothing else."""

    client: Handling = Handling()
    router: Handling = Handling()
    instance: Handling = Handling()
    slowdown: float = 1.0
    """By how much steps are more work in a server than alone: caches that they share."""
    step_s: float = 0.0
    """Work around each step of an engine: planning it, applying it, handing it to a thread."""
    vision_step_s: float = 0.0
    step_wait_s: float = 0.0
    """What a step takes longer than its work: threads wake."""
    hop_s: float = 0.0
    """What a message between router and instance takes longer than the work at both ends."""
    picture_s: float = 0.0
    """Work to decode a picture, whatever its size, ..."""
    megapixel_s: float = 0.0
    """... and for each million of its pixels."""
    picture_wait_s: float = 0.0
    """What that takes longer than the work."""
    transfer_s: float = 0.0
    """Work of giver and taker together for a transfer between instances, ..."""
    transfer_byte_s: float = 0.0
    """... and for each byte."""
    transfer_wait_s: float = 0.0
    """What it takes longer than that work."""
    frees_lock: bool = False
    """Whether decode steps leave the interpreter to the event loop beside them."""
    encodes_alone: bool = False
    """Whether every picture has a step of its own, as on a CPU."""
    speeds: tuple[float, ...] = ()
    """What the machine's cores do a second, all together, with 1, 2, ... of them at work; as many
    numbers as cores."""
    beat_s: float = 0.0
    """How fast the machine was: seconds of a beat (``simulator.profile.tempo``); 0: not known."""

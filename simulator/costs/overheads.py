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
    """Work for a step of a run that is taken in while the next one is computed."""
    step_wait_s: float = 0.0
    """What passes until that one begins: it is told of, and the lock is waited for, ..."""
    step_token_wait_s: float = 0.0
    """... longer for each sequence in it."""
    turn_s: float = 0.0
    """Work between two steps of which the second is planned when the first is over: to take in what
    it made, to plan the next one and to hand it to a thread."""
    turn_token_s: float = 0.0
    """More of it for each sequence in the first, ..."""
    turn_prompt_s: float = 0.0
    """... and for each that is a prompt."""
    vision_step_s: float = 0.0
    """The same between steps of pictures."""
    turn_wait_s: float = 0.0
    """What passes between two such steps besides: threads wake."""
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
    """Whether steps leave the interpreter to the event loop beside them."""
    encodes_alone: bool = False
    """Whether every picture has a step of its own, as on a CPU."""
    speeds: tuple[float, ...] = ()
    """What the machine's cores do a second, all together, with 1, 2, ... of them at work; as many
    numbers as cores."""
    slice_s: float = 0.0
    """For how long the system leaves a core to a thread while others wait; 0: all that are runnable
    progress alike, as if infinitely short."""
    tick_s: float = 0.004
    """How often it looks whether a slice is over."""
    pictures_nice: int = 0
    """By how much nicer the thread is that encodes where a language model shares its cores."""
    beat_s: float = 0.0
    """How fast the machine was: seconds of a beat (``simulator.profile.tempo``); 0: not known."""

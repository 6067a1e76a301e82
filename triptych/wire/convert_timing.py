"""Where a job's time went <-> its message in ``proto/triptych/v1/stage.proto``.

As ``wire.convert``, which uses it. Absent messages mean zeros: older peers do not tell of steps.
"""

from triptych.core.event import Steps, Timing
from triptych.v1 import stage_pb2 as pb


def encode_timing(timing: Timing) -> pb.Timing:
    """A timing as its message."""
    return pb.Timing(
        queue_s=timing.queue_s,
        transfer_s=timing.transfer_s,
        compute_s=timing.compute_s,
        prefill_s=timing.prefill_s,
        cached_tokens=timing.cached_tokens,
        first_steps=_encode_steps(timing.first_steps),
        later_steps=_encode_steps(timing.later_steps),
    )


def decode_timing(message: pb.Timing) -> Timing:
    """The inverse of ``encode_timing``."""
    return Timing(
        queue_s=message.queue_s,
        transfer_s=message.transfer_s,
        compute_s=message.compute_s,
        prefill_s=message.prefill_s,
        cached_tokens=message.cached_tokens,
        first_steps=_decode_steps(message.first_steps),
        later_steps=_decode_steps(message.later_steps),
    )


def _encode_steps(steps: Steps) -> pb.Steps | None:
    if not steps.count:
        return None
    return pb.Steps(**{name: getattr(steps, name) for name in Steps.__struct_fields__})


def _decode_steps(message: pb.Steps) -> Steps:
    return Steps(**{name: getattr(message, name) for name in Steps.__struct_fields__})

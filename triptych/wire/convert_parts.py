"""Parts that several messages of ``stage.proto`` share: headers, items, endpoints, promises.

As in ``convert``: ``encode_*`` never fails; ``decode_*`` raises RequestError for a message that no
peer of ours sends.
"""

from triptych.core import handoff, request
from triptych.core.errors import RequestError
from triptych.core.ids import ContentHash, Handle, InstanceId, JobId, SessionId
from triptych.v1 import stage_pb2 as pb

_KEY_BYTES = 32


def encode_header(header: handoff.JobHeader) -> pb.JobHeader:
    """A job's header as its message."""
    return pb.JobHeader(
        id=header.id,
        session=header.session,
        epoch=header.epoch,
        budget_s=header.budget_s,
        salt=header.salt,
        slo_ttft_s=header.slo_ttft_s,
        slo_tpot_s=header.slo_tpot_s,
        priority=header.priority,
        later_s=header.later_s,
    )


def decode_header(message: pb.JobHeader) -> handoff.JobHeader:
    """The inverse of ``encode_header``."""
    if not message.id or not message.session:
        raise RequestError("a job needs an id and a session", field="header")
    return handoff.JobHeader(
        id=JobId(message.id),
        session=SessionId(message.session),
        epoch=message.epoch,
        budget_s=message.budget_s,
        salt=message.salt,
        slo_ttft_s=message.slo_ttft_s if message.HasField("slo_ttft_s") else None,
        slo_tpot_s=message.slo_tpot_s if message.HasField("slo_tpot_s") else None,
        priority=message.priority,
        later_s=message.later_s,
    )


def encode_item(item: request.Item) -> pb.Item:
    """An item as its message."""
    return pb.Item(key=item.key, offset=item.offset, num_tokens=item.num_tokens, grid=item.grid)


def decode_item(message: pb.Item) -> request.Item:
    """The inverse of ``encode_item``."""
    if len(message.grid) != 3 or len(message.key) != _KEY_BYTES:
        raise RequestError("an item has a key of 32 bytes and a grid of 3 numbers", field="item")
    time, height, width = message.grid
    return request.Item(
        key=ContentHash(message.key),
        offset=message.offset,
        num_tokens=message.num_tokens,
        grid=(time, height, width),
    )


def encode_endpoint(endpoint: handoff.Endpoint) -> pb.Endpoint:
    """An endpoint as its message."""
    return pb.Endpoint(
        host=endpoint.host,
        port=endpoint.port,
        path=endpoint.path,
        machine=endpoint.machine,
        ways=endpoint.ways,
    )


def decode_endpoint(message: pb.Endpoint) -> handoff.Endpoint:
    """The inverse of ``encode_endpoint``."""
    return handoff.Endpoint(
        host=message.host,
        port=message.port,
        path=message.path,
        machine=message.machine,
        ways=tuple(message.ways),
    )


def encode_ref(ref: handoff.TransferRef) -> pb.TransferRef:
    """A promise as its message."""
    return pb.TransferRef(
        handle=ref.handle,
        epoch=ref.epoch,
        instance=ref.instance,
        endpoint=encode_endpoint(ref.endpoint),
        layout=ref.layout,
        num_tokens=ref.num_tokens,
    )


def encode_maybe(ref: handoff.TransferRef | None) -> pb.TransferRef | None:
    """A promise as its message, if there is one."""
    return None if ref is None else encode_ref(ref)


def decode_ref(message: pb.TransferRef) -> handoff.TransferRef:
    """The inverse of ``encode_ref``."""
    return handoff.TransferRef(
        handle=Handle(message.handle),
        epoch=message.epoch,
        instance=InstanceId(message.instance),
        endpoint=decode_endpoint(message.endpoint),
        layout=message.layout,
        num_tokens=message.num_tokens,
    )

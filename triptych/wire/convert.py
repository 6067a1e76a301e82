"""Core values <-> messages of ``proto/triptych/v1/stage.proto``, both ways, field by field.

``encode_*`` never fails on a valid core value. ``decode_*`` raises RequestError for a message that
no peer of ours sends (a missing part, a key of the wrong length). Knows no channel and no call.
"""

from collections.abc import Sequence

from triptych.core import event, handoff, request, view
from triptych.core.census import Census, Holding
from triptych.core.errors import RequestError
from triptych.core.ids import Handle, InstanceId, JobId
from triptych.core.layout import Layout
from triptych.core.lifecycle import Stage
from triptych.v1 import stage_pb2 as pb
from triptych.wire import convert_catalog
from triptych.wire import convert_parts as parts
from triptych.wire.convert_timing import decode_timing, encode_timing

_TO_STAGE = {
    Stage.ENCODE: pb.STAGE_ENCODE,
    Stage.PREFILL: pb.STAGE_PREFILL,
    Stage.DECODE: pb.STAGE_DECODE,
}
_FROM_STAGE = {number: stage for stage, number in _TO_STAGE.items()}


# ------------------------------------------------------------------------------------------ jobs


def encode_encode_job(job: handoff.EncodeJob) -> pb.EncodeJob:
    """An encode job as its message."""
    return pb.EncodeJob(
        header=parts.encode_header(job.header),
        item=parts.encode_item(job.item),
        data=job.data,
        format=job.format,
        handle=job.handle,
    )


def decode_encode_job(message: pb.EncodeJob) -> handoff.EncodeJob:
    """The inverse of ``encode_encode_job``."""
    return handoff.EncodeJob(
        header=parts.decode_header(message.header),
        item=parts.decode_item(message.item),
        data=message.data,
        format=message.format,
        handle=Handle(message.handle),
    )


def encode_language_job(job: handoff.LanguageJob) -> pb.LanguageJob:
    """A language job as its message."""
    sampling, stop = job.sampling, job.stop
    return pb.LanguageJob(
        header=parts.encode_header(job.header),
        prompt=_encode_prompt(job.prompt),
        sampling=pb.Sampling(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            seed=sampling.seed,
            logprobs=sampling.logprobs,
        ),
        stop=pb.StopRule(
            max_tokens=stop.max_tokens, token_ids=stop.token_ids, strings=stop.strings
        ),
        generated=job.generated,
        items=[
            pb.PromisedItem(
                item=parts.encode_item(promised.item), ref=parts.encode_maybe(promised.ref)
            )
            for promised in job.items
        ],
        kv=parts.encode_maybe(job.kv),
        publish=job.publish,
        prefix=parts.encode_maybe(job.prefix),
    )


def decode_language_job(message: pb.LanguageJob) -> handoff.LanguageJob:
    """The inverse of ``encode_language_job``."""
    sampling, stop = message.sampling, message.stop
    return handoff.LanguageJob(
        header=parts.decode_header(message.header),
        prompt=_decode_prompt(message.prompt),
        sampling=request.Sampling(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            seed=sampling.seed,
            logprobs=sampling.logprobs,
        ),
        stop=request.StopRule(
            max_tokens=stop.max_tokens,
            token_ids=tuple(stop.token_ids),
            strings=tuple(stop.strings),
        ),
        generated=tuple(message.generated),
        items=tuple(
            handoff.PromisedItem(
                item=parts.decode_item(promised.item),
                ref=parts.decode_ref(promised.ref) if promised.HasField("ref") else None,
            )
            for promised in message.items
        ),
        kv=parts.decode_ref(message.kv) if message.HasField("kv") else None,
        publish=Handle(message.publish) if message.HasField("publish") else None,
        prefix=parts.decode_ref(message.prefix) if message.HasField("prefix") else None,
    )


def encode_lend_job(job: handoff.LendJob) -> pb.LendJob:
    """The loan of a prefix as its message."""
    return pb.LendJob(
        header=parts.encode_header(job.header), prompt=_encode_prompt(job.prompt), handle=job.handle
    )


def decode_lend_job(message: pb.LendJob) -> handoff.LendJob:
    """The inverse of ``encode_lend_job``."""
    return handoff.LendJob(
        header=parts.decode_header(message.header),
        prompt=_decode_prompt(message.prompt),
        handle=Handle(message.handle),
    )


def _encode_prompt(prompt: request.Prompt) -> pb.Prompt:
    items = [parts.encode_item(item) for item in prompt.items]
    return pb.Prompt(token_ids=prompt.token_ids, items=items)


def _decode_prompt(message: pb.Prompt) -> request.Prompt:
    return request.Prompt(
        token_ids=tuple(message.token_ids),
        items=tuple(parts.decode_item(item) for item in message.items),
    )


# ---------------------------------------------------------------------------------------- events


def encode_batch(batch: event.EventBatch) -> pb.EventBatch:
    """A batch of events as its message."""
    return pb.EventBatch(
        events=[_encode_event(one) for one in batch.events],
        caches=[convert_catalog.encode_cache_batch(one) for one in batch.caches],
        links=[convert_catalog.encode_link(one) for one in batch.links],
    )


def decode_batch(message: pb.EventBatch) -> event.EventBatch:
    """The inverse of ``encode_batch``."""
    return event.EventBatch(
        tuple(_decode_event(one) for one in message.events),
        tuple(convert_catalog.decode_cache_batch(one) for one in message.caches),
        tuple(convert_catalog.decode_link(one) for one in message.links),
    )


def _encode_event(one: event.Event) -> pb.Event:
    match one:
        case event.Encoded():
            return pb.Event(encoded=pb.Encoded(job=one.job, timing=encode_timing(one.timing)))
        case event.Tokens():
            tokens = [_encode_token(token) for token in one.tokens]
            return pb.Event(tokens=pb.Tokens(job=one.job, tokens=tokens))
        case event.Finished():
            timing = encode_timing(one.timing)
            return pb.Event(finished=pb.Finished(job=one.job, reason=one.reason, timing=timing))
        case event.Failed():
            return pb.Event(
                failed=pb.Failed(job=one.job, code=one.code, detail=one.detail, blame=one.blame)
            )


def _decode_event(message: pb.Event) -> event.Event:
    match message.WhichOneof("kind"):
        case "encoded":
            one = message.encoded
            return event.Encoded(JobId(one.job), decode_timing(one.timing))
        case "tokens":
            tokens = tuple(_decode_token(token) for token in message.tokens.tokens)
            return event.Tokens(JobId(message.tokens.job), tokens)
        case "finished":
            done = message.finished
            return event.Finished(JobId(done.job), done.reason, decode_timing(done.timing))
        case "failed":
            failed = message.failed
            return event.Failed(JobId(failed.job), failed.code, failed.detail, failed.blame)
        case _:
            raise RequestError("an event of no known kind", field="events")


def _encode_token(token: event.Token) -> pb.Token:
    return pb.Token(
        index=token.index,
        id=token.id,
        logprob=token.logprob,
        top=[pb.Alternative(id=number, logprob=logprob) for number, logprob in token.top],
    )


def _decode_token(message: pb.Token) -> event.Token:
    return event.Token(
        index=message.index,
        id=message.id,
        logprob=message.logprob if message.HasField("logprob") else None,
        top=tuple((one.id, one.logprob) for one in message.top),
    )


# -------------------------------------------------------------------------- description and census


def encode_description(description: view.Description) -> pb.Description:
    """A description as its message."""
    return pb.Description(
        id=description.id,
        role=[_TO_STAGE[stage] for stage in description.role],
        model=description.model,
        transfer=parts.encode_endpoint(description.transfer),
        kv=None if description.kv is None else _encode_layout(description.kv),
        embedding=None if description.embedding is None else _encode_layout(description.embedding),
        num_kv_blocks=description.num_kv_blocks,
        num_embedding_blocks=description.num_embedding_blocks,
        max_tokens=description.max_tokens,
        pid=description.pid,
        memory_bytes=description.memory_bytes,
    )


def decode_description(message: pb.Description) -> view.Description:
    """The inverse of ``encode_description``."""
    return view.Description(
        id=InstanceId(message.id),
        role=_decode_stages(message.role),
        model=message.model,
        transfer=parts.decode_endpoint(message.transfer),
        kv=_decode_layout(message.kv) if message.HasField("kv") else None,
        embedding=_decode_layout(message.embedding) if message.HasField("embedding") else None,
        num_kv_blocks=message.num_kv_blocks,
        num_embedding_blocks=message.num_embedding_blocks,
        max_tokens=message.max_tokens,
        pid=message.pid,
        memory_bytes=dict(message.memory_bytes),
    )


def encode_census(census: Census) -> pb.CensusResponse:
    """A census as its message."""
    held = [pb.Holding(kind=row.kind, owner=row.owner, count=row.count) for row in census.held]
    return pb.CensusResponse(instance=census.instance, held=held, totals=census.totals)


def decode_census(message: pb.CensusResponse) -> Census:
    """The inverse of ``encode_census``."""
    held = tuple(Holding(row.kind, row.owner, row.count) for row in message.held)
    return Census(instance=message.instance, held=held, totals=dict(message.totals))


def _decode_stages(numbers: Sequence[pb.Stage]) -> tuple[Stage, ...]:
    if unknown := [number for number in numbers if number not in _FROM_STAGE]:
        raise RequestError(f"stage {unknown[0]} is not known", field="role")
    return tuple(_FROM_STAGE[number] for number in numbers)


def _encode_layout(layout: Layout) -> pb.Layout:
    return pb.Layout(
        kind=layout.kind,
        model=layout.model,
        dtype=layout.dtype,
        shape=layout.shape,
        block_size=layout.block_size,
        num_shards=layout.num_shards,
    )


def _decode_layout(message: pb.Layout) -> Layout:
    return Layout(
        kind=message.kind,
        model=message.model,
        dtype=message.dtype,
        shape=tuple(message.shape),
        block_size=message.block_size,
        num_shards=message.num_shards or 1,
    )

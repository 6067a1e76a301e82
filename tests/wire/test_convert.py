"""Every core value survives the wire, and what no peer sends is refused."""

import string

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.core import event, handoff, request, view
from triptych.core.census import Census, Holding
from triptych.core.errors import RequestError
from triptych.core.layout import Layout
from triptych.core.lifecycle import Stage
from triptych.v1 import stage_pb2 as pb
from triptych.wire import convert

u32 = st.integers(0, 2**32 - 1)
small = st.integers(0, 70_000)
names = st.text(string.ascii_letters + "/-@0123456789é", min_size=1, max_size=20)
floats = st.floats(allow_nan=False, width=64)
tokens = st.lists(u32, max_size=17).map(tuple)

items = st.builds(
    request.Item,
    key=st.binary(min_size=32, max_size=32),
    offset=small,
    num_tokens=small,
    grid=st.tuples(small, small, small),
)
endpoints = st.builds(
    handoff.Endpoint,
    host=st.text(max_size=9),
    port=small,
    path=st.text(max_size=9),
    machine=st.text(max_size=9),
)
refs = st.builds(
    handoff.TransferRef,
    handle=names,
    epoch=small,
    instance=names,
    endpoint=endpoints,
    layout=names,
    num_tokens=small,
)
headers = st.builds(
    handoff.JobHeader,
    id=names,
    session=names,
    epoch=small,
    budget_s=floats,
    salt=st.binary(max_size=32),
    slo_ttft_s=st.none() | floats,
    slo_tpot_s=st.none() | floats,
    priority=st.integers(-(2**31), 2**31 - 1),
    later_s=floats,
)
encode_jobs = st.builds(
    handoff.EncodeJob,
    header=headers,
    item=items,
    data=st.binary(max_size=99),
    format=st.sampled_from(["PNG", "JPEG"]),
    handle=names,
)
samplings = st.builds(
    request.Sampling,
    temperature=floats,
    top_p=floats,
    top_k=small,
    min_p=floats,
    repetition_penalty=floats,
    presence_penalty=floats,
    frequency_penalty=floats,
    seed=st.integers(-(2**63), 2**63 - 1),
    logprobs=st.integers(-1, 20),
)
stops = st.builds(
    request.StopRule,
    max_tokens=small,
    token_ids=tokens,
    strings=st.lists(st.text(max_size=5), max_size=3).map(tuple),
)
language_jobs = st.builds(
    handoff.LanguageJob,
    header=headers,
    prompt=st.builds(
        request.Prompt, token_ids=tokens, items=st.lists(items, max_size=3).map(tuple)
    ),
    sampling=samplings,
    stop=stops,
    generated=tokens,
    items=st.lists(st.builds(handoff.PromisedItem, item=items, ref=refs), max_size=3).map(tuple),
    kv=st.none() | refs,
    publish=st.none() | names,
)
timings = st.builds(
    event.Timing,
    queue_s=floats,
    transfer_s=floats,
    compute_s=floats,
    prefill_s=floats,
    cached_tokens=small,
)
tops = st.lists(st.tuples(u32, floats), max_size=3).map(tuple)
drawn = st.builds(event.Token, index=small, id=u32, logprob=st.none() | floats, top=tops)
events = st.one_of(
    st.builds(event.Encoded, job=names, timing=timings),
    st.builds(event.Tokens, job=names, tokens=st.lists(drawn, max_size=5).map(tuple)),
    st.builds(
        event.Finished, job=names, reason=st.sampled_from(["stop", "length"]), timing=timings
    ),
    st.builds(event.Failed, job=names, code=names, detail=st.text(), blame=st.text(max_size=9)),
)
layouts = st.builds(
    Layout,
    kind=st.sampled_from(["kv", "embedding"]),
    model=names,
    dtype=st.sampled_from(["float32", "bfloat16"]),
    shape=st.lists(small, min_size=1, max_size=5).map(tuple),
    block_size=small,
)
descriptions = st.builds(
    view.Description,
    id=names,
    role=st.lists(st.sampled_from(Stage), max_size=3).map(tuple),
    model=names,
    transfer=endpoints,
    kv=st.none() | layouts,
    embedding=st.none() | layouts,
    num_kv_blocks=small,
    num_embedding_blocks=small,
    max_tokens=small,
    pid=small,
    memory_bytes=st.dictionaries(names, st.integers(0, 2**60), max_size=3),
)
censuses = st.builds(
    Census,
    instance=names,
    held=st.lists(st.builds(Holding, kind=names, owner=names, count=small), max_size=4).map(tuple),
    totals=st.dictionaries(names, small, max_size=4),
)

CASES = {
    "encode_job": (encode_jobs, convert.encode_encode_job, convert.decode_encode_job),
    "language_job": (language_jobs, convert.encode_language_job, convert.decode_language_job),
    "batch": (
        st.builds(event.EventBatch, events=st.lists(events, max_size=5).map(tuple)),
        convert.encode_batch,
        convert.decode_batch,
    ),
    "description": (descriptions, convert.encode_description, convert.decode_description),
    "census": (censuses, convert.encode_census, convert.decode_census),
}


@pytest.mark.parametrize("name", CASES)
def test_round_trip_through_bytes(name):
    strategy, encode, decode = CASES[name]

    @given(strategy)
    @settings(max_examples=60, deadline=None)
    def check(value):
        message = encode(value)
        again = type(message).FromString(message.SerializeToString())
        assert decode(again) == value

    check()


@pytest.mark.parametrize("struct", [
    handoff.EncodeJob, handoff.LanguageJob, handoff.JobHeader, handoff.TransferRef,
    handoff.PromisedItem, handoff.Endpoint, event.Token, event.Timing, event.Encoded,
    event.Tokens, event.Finished, event.Failed, event.EventBatch, request.Item, request.Prompt,
    request.Sampling, request.StopRule, view.Description, Layout, Holding,
])  # fmt: skip
def test_no_field_is_missing_on_the_wire(struct):
    message = getattr(pb, struct.__name__)
    fields = {field.name for field in msgspec.structs.fields(struct)}
    assert {field.name for field in message.DESCRIPTOR.fields} == fields


def test_malformed_messages_are_refused():
    with pytest.raises(RequestError, match="needs an id"):
        convert.decode_encode_job(pb.EncodeJob())
    header = pb.JobHeader(id="a", session="b")
    with pytest.raises(RequestError):
        convert.decode_encode_job(pb.EncodeJob(header=header, item=pb.Item(key=b"x")))
    with pytest.raises(RequestError):
        convert.decode_batch(pb.EventBatch(events=[pb.Event()]))
    with pytest.raises(RequestError):
        convert.decode_description(pb.Description(role=[0]))

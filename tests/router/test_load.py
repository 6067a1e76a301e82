"""Loads are counted as jobs come, draw and go, and end at nothing; views change where they must."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.load import Load
from router.views import Views
from tests.router.members import describe
from triptych.core.handoff import EncodeJob, Endpoint, JobHeader, LanguageJob, LendJob, TransferRef
from triptych.core.hashing import digest
from triptych.core.ids import Handle, InstanceId, JobId, SessionId
from triptych.core.lifecycle import InstanceState
from triptych.core.request import Item, Prompt, Sampling, StopRule
from triptych.core.view import ClusterView, InstanceView, Pending

KINDS = ("encode", "prefill", "decode", "both", "lend")
PROMPT = Prompt(tuple(range(100)))
BASE = InstanceView(describe(InstanceId("a")), InstanceState.READY, {}, {})


def job(kind, name="j"):
    header = JobHeader(JobId(name), SessionId("s"), 0, 60.0)
    if kind == "encode":
        return EncodeJob(header, Item(digest("i", b""), 0, 40, (1, 4, 40)), b"", "PNG", Handle("h"))
    if kind == "lend":
        return LendJob(header, PROMPT, Handle("h"))
    one = LanguageJob(header, PROMPT, Sampling(), StopRule(10))
    if kind == "prefill":
        return msgspec.structs.replace(one, publish=Handle("h"))
    if kind == "decode":
        ref = TransferRef(Handle("h"), 0, InstanceId("p"), Endpoint(), "", 100)
        return msgspec.structs.replace(one, kv=ref)
    return one


def seen(load):
    return load.view(BASE, InstanceState.READY).pending


def test_a_prompt_becomes_a_decode_where_it_stays_and_goes_where_it_does_not():
    load, both = Load(), job("both")
    load.add(both, 60)
    pairs = 60 * 40 + 40 * 41 // 2
    assert seen(load) == Pending(prompts=1, prompt_tokens=40, prompt_pairs=pairs)
    assert load.drew(both, 1), "room for the next prompt"
    assert seen(load) == Pending(decodes=1, context_tokens=101, output_tokens=9)
    assert not load.drew(both, 3)
    assert seen(load) == Pending(decodes=1, context_tokens=104, output_tokens=6)
    load.remove(both)
    assert seen(load) == Pending()
    prefill = job("prefill")
    load.add(prefill, 0)
    assert load.drew(prefill, 1)
    assert seen(load) == Pending(), "its KV is on its way, but nothing is to be computed"
    assert load.view(BASE, InstanceState.READY).num_jobs["prefill"] == 1
    load.remove(prefill)


def test_pictures_and_decodes_are_counted_from_the_beginning():
    load = Load()
    load.add(job("encode", "e"), 0)
    load.add(job("decode", "d"), 0)
    load.add(job("lend", "l"), 0)
    assert seen(load) == Pending(
        pictures=1, image_tokens=40, decodes=1, context_tokens=100, output_tokens=10
    )


EVENTS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 4), st.integers(0, 3)))


@given(EVENTS, st.integers(0, 100))
@settings(deadline=None)
def test_nothing_is_left_when_all_is_over(events, cached):
    load, jobs = Load(), {}
    for kind, name, action in events:
        known = jobs.get(name)
        if action == 0 and known is None:
            jobs[name] = job(kind, str(name))
            load.add(jobs[name], cached)
        elif known is not None and action == 1:
            load.drew(known, 2)
        elif known is not None and action == 2:
            load.remove(jobs.pop(name))
            load.remove(known)
        now = seen(load)
        assert min(getattr(now, field) for field in Pending.__struct_fields__) >= 0
    for each in jobs.values():
        load.remove(each)
    left = load.view(BASE, InstanceState.READY)
    assert left.pending == Pending()
    assert not any(left.num_jobs.values())
    assert not any(left.num_tokens.values())


@pytest.fixture
def members():
    bases = [
        InstanceView(describe(InstanceId(name)), InstanceState.READY, {}, {}) for name in "abc"
    ]
    return ClusterView(tuple(bases))


def test_only_what_changed_is_made_anew(members):
    views, asked = Views(), []

    def see(base):
        asked.append(base.description.id)
        return msgspec.structs.replace(base)

    first = views.view(members, see)
    assert views.view(members, see) is first
    assert asked == ["a", "b", "c"]
    views.touch(InstanceId("b"))
    views.touch(InstanceId("unknown"))
    second = views.view(members, see)
    assert asked == ["a", "b", "c", "b"]
    assert [one is other for one, other in zip(first.instances, second.instances, strict=True)] == [
        True, False, True
    ]  # fmt: skip
    views.forget()
    views.view(members, lambda base: None if base.description.id == "a" else see(base))
    assert asked[4:] == ["b", "c"]
    assert views.view(ClusterView(()), see) == ClusterView(())

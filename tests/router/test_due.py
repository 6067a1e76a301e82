"""What jobs say of their urgency: what is due when, and what lies behind each stage."""

import pytest

from router.due import Due, Way
from scheduler.latency import PRIOR_BYTES_PER_S, PRIOR_LATENCY_S, PRIOR_S, Latencies
from triptych.core.handoff import Endpoint
from triptych.core.hashing import digest
from triptych.core.ids import InstanceId, RequestId, TenantId
from triptych.core.layout import Layout
from triptych.core.lifecycle import Stage
from triptych.core.request import Item, Prompt, Request, Sampling, Slo, StopRule
from triptych.core.view import Description, Route

E, P, D = (InstanceId(name) for name in ("encode-0@0", "prefill-0@0", "decode-0@0"))


def request(slo: Slo, priority: int = 0) -> Request:
    return Request(RequestId("r"), TenantId("t"), (), (), Sampling(), StopRule(9), slo, 100.0,
                   priority=priority)  # fmt: skip


def test_the_first_token_and_the_ones_behind_it() -> None:
    due = Due(request(Slo("x", 2.0, 0.1), priority=4), 10.0)
    assert due.left(10.5) == (1.5, 0.1, 4)
    due.drew(11.0, 1)
    assert due.left(11.0) == (pytest.approx(0.1), 0.1, 4)
    due.drew(15.0, 3)
    assert due.next_s == pytest.approx(11.4)
    assert due.left(15.0)[0] == pytest.approx(-3.6)


def test_without_bounds() -> None:
    due = Due(request(Slo()), 10.0)
    assert due.left(10.0) == (None, None, 0)
    due.drew(11.0, 1)
    assert due.next_s is None
    assert Due(request(Slo("x", 2.0, 0.1)), None).next_s is None
    only_first = Due(request(Slo("x", 2.0, None)), 10.0)
    only_first.drew(11.0, 1)
    assert only_first.next_s is None


def way(route: Route) -> Way:
    kv = Layout("kv", "m", "float32", (2, 2, 16, 1, 8), 16)
    embedding = Layout("embedding", "m", "float32", (16, 8), 16)
    about = {
        name: Description(name, role, "m", Endpoint(), kv, embedding, 9, 9, 999, 1, {})
        for name, role in ((E, (Stage.ENCODE,)), (P, (Stage.PREFILL,)), (D, (Stage.DECODE,)))
    }
    items = (Item(digest("item", b"a"), 20, 32, (1, 2, 64)),)
    return Way(Prompt(tuple(range(100)), items), route, about, Latencies())


def test_what_lies_behind_a_picture_and_behind_prefill() -> None:
    item = Item(digest("item", b"a"), 20, 32, (1, 2, 64))
    apart = way(Route((E,), P, D))
    moved_s = PRIOR_LATENCY_S + 32 * 8 * 4 / PRIOR_BYTES_PER_S
    prefill_s = 80 * PRIOR_S[Stage.PREFILL]
    assert apart.behind_picture(E, item) == pytest.approx(moved_s + prefill_s)
    kv_bytes = 100 * 2 * 2 * 8 * 4
    moved_s = PRIOR_LATENCY_S + kv_bytes / PRIOR_BYTES_PER_S
    assert apart.behind_prefill() == pytest.approx(moved_s + PRIOR_S[Stage.DECODE])
    together = way(Route((P,), P, P))
    assert together.behind_picture(P, item) == pytest.approx(prefill_s)
    assert together.behind_prefill() == 0.0

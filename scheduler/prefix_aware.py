"""Placement by the soonest first token: queues, caches, links and speeds as seconds of one sum.

For every prefill instance: wait for its queue, then either compute what its own caches lack or
fetch a longer prefix that another instance holds and compute the rest, whichever is sooner (the
choice of MemServe, arXiv 2406.17565, with the link of the pair); encode the pictures that neither
covers; hand the KV over that the decode instance lacks. Pure; knows no address.
"""

import math
from collections.abc import Iterator, Sequence
from heapq import nsmallest
from itertools import product

import msgspec

from scheduler.latency import TIER_BYTES_PER_S, Latencies
from scheduler.placement import (
    ANYTHING,
    ENCODE_SLACK,
    NOTHING,
    Ask,
    Block,
    Pair,
    affinity,
    encoders_for,
    load,
    match,
    pairs_of,
)
from triptych.core.catalog import Tier
from triptych.core.ids import ContentHash, InstanceId
from triptych.core.layout import Layout
from triptych.core.lifecycle import InstanceState, Stage
from triptych.core.request import Item, Prompt
from triptych.core.view import ClusterView, Coverage, InstanceView, Prefix, Route

WIDTH = 8
"""Instances of each stage that are looked at in pairs, where there are more."""


class _Plan(msgspec.Struct, frozen=True):
    """What one prefill instance would do for a prompt, and how long until its KV is there."""

    seconds: float
    encode: tuple[InstanceId | None, ...]
    prefix: Prefix | None
    cached: int
    """Leading tokens that are not computed."""


class PrefixAware:
    """The pair with the least sum of seconds."""

    def __init__(self, latencies: Latencies) -> None:
        self._latencies = latencies

    def choose(
        self,
        view: ClusterView,
        prompt: Prompt,
        avoid: frozenset[InstanceId] = frozenset(),
        coverage: Coverage = NOTHING,
        ask: Ask = ANYTHING,  # noqa: ARG002
    ) -> Route:
        """See ``Placement``."""
        look = _Look(self._latencies, view, prompt, avoid, coverage)
        plans: dict[InstanceId, _Plan] = {}
        best: tuple[float, Route] | None = None
        for prefill, decode in look.candidates(pairs_of(view, prompt, avoid)):
            name = prefill.description.id
            plan = plans.get(name) or plans.setdefault(name, look.plan(prefill))
            seconds = plan.seconds + look.hand_over_s(prefill, decode)
            if best is None or seconds < best[0]:
                route = Route(plan.encode, name, decode.description.id, plan.prefix, plan.cached)
                best = seconds, route
        assert best is not None, "pairs_of raises when there is no pair"
        return best[1]


class _Look:
    """One prompt, and the cluster at one moment."""

    def __init__(
        self,
        latencies: Latencies,
        view: ClusterView,
        prompt: Prompt,
        avoid: frozenset[InstanceId],
        coverage: Coverage,
    ) -> None:
        self._latencies = latencies
        self._view = view
        self._prompt = prompt
        self._avoid = avoid
        self._coverage = coverage
        self._steps_s: dict[InstanceId, float] = {}
        """The next step of each decode instance that was looked at."""
        self._tokens_s: dict[tuple[Stage, InstanceId], float] = {}
        self._fed_by: dict[tuple[str, Layout | None], Sequence[InstanceView]] = {}
        self._affinities: dict[tuple[ContentHash, InstanceId], int] = {}
        self._lenders = [
            each
            for each in (view.instances if coverage.held else ())
            if each.state is InstanceState.READY
            and each.description.id not in avoid
            and each.description.kv is not None
            and coverage.of(each.description.id).kv_tokens[0]  # what lies lower is not lent
        ]

    def candidates(self, blocks: Sequence[Block]) -> Iterator[Pair]:
        """All pairs of few instances; of many, those of the best of each stage by themselves."""
        for block in blocks:
            prefills: Sequence[InstanceView] = block.prefills
            decodes: Sequence[InstanceView] = block.decodes
            if len(prefills) > WIDTH:
                prefills = nsmallest(WIDTH, prefills, key=self._rank_prefill)
            if len(decodes) > WIDTH:
                decodes = nsmallest(WIDTH, decodes, key=self._rank_decode)
            yield from product(prefills, decodes)
            if len(block.decodes) > WIDTH:
                yield from ((each, each) for each in block.both if each in prefills)

    def _rank_prefill(self, prefill: InstanceView) -> float:
        name = prefill.description.id
        lacking = len(self._prompt) - self._coverage.of(name).kv_tokens[-1]
        return (load(prefill) + lacking) * self._token_s(Stage.PREFILL, name)

    def _rank_decode(self, decode: InstanceView) -> tuple[int, int]:
        held = self._coverage.of(decode.description.id).kv_tokens[0]
        return decode.pending.context_tokens - held, load(decode)

    def plan(self, prefill: InstanceView) -> _Plan:
        """The soonest way to the prompt's KV at ``prefill``."""
        name, size = prefill.description.id, _layout(prefill).block_size
        most = (len(self._prompt) - 1) // size * size  # the last token is always computed
        own = min(self._coverage.of(name).kv_tokens[-1], most)
        begin_s = self._queue_s(prefill) + self._read_s(prefill, most)
        plans = [self._with(prefill, own, begin_s, None)]
        for lender in self._lenders:
            other = lender.description.id
            step = math.lcm(size, _layout(lender).block_size)  # full blocks of both
            lent = min(self._coverage.of(other).kv_tokens[0], most) // step * step
            if lent > own and other != name and match(lender, prefill):
                num_bytes = (lent - own) * _token_bytes(prefill)
                fetch_s = self._latencies.transfer_s(other, name, num_bytes)
                plans.append(self._with(prefill, lent, begin_s + fetch_s, Prefix(other, lent)))
        return min(plans, key=lambda plan: plan.seconds)

    def hand_over_s(self, prefill: InstanceView, decode: InstanceView) -> float:
        """Seconds from KV at ``prefill`` to the same at ``decode``, and to the next token there:
        one step beside the sequences that decode, not the computing of their prompts."""
        if prefill is decode:
            return 0.0
        one, other = prefill.description.id, decode.description.id
        cached = min(self._coverage.of(other).kv_tokens[0], len(self._prompt))
        num_bytes = (len(self._prompt) - cached) * _token_bytes(prefill)
        step_s = self._steps_s.get(other)
        if step_s is None:
            pending = decode.pending
            step_s = self._steps_s[other] = self._latencies.speeds.of(other).language_s(
                (), pending.decodes + 1, pending.context_tokens + len(self._prompt)
            )
        return step_s + self._latencies.transfer_s(one, other, num_bytes)

    def _with(
        self, prefill: InstanceView, covered: int, begin_s: float, prefix: Prefix | None
    ) -> _Plan:
        """The plan in which the KV of ``covered`` tokens is not computed."""
        name = prefill.description.id
        cached = self._coverage.of(name).items
        lacking = [
            item for item in self._prompt.items if item.end > covered and item.key not in cached
        ]
        chosen, encode_s = self._encode(prefill, lacking)
        compute_s = self._token_s(Stage.PREFILL, name) * (len(self._prompt) - covered)
        keys = {item.key for item in lacking}
        encode = tuple(
            chosen[item.key] if item.key in keys and item.end > covered else None
            for item in self._prompt.items
        )
        return _Plan(begin_s + encode_s + compute_s, encode, prefix, covered)

    def _encode(
        self, prefill: InstanceView, items: Sequence[Item]
    ) -> tuple[dict[ContentHash, InstanceId], float]:
        """An encoder for each distinct item, and the seconds until the last of them is done.

        Of the encoders that would be about equally soon, one that holds the picture, then one with
        the fewest pictures of this request, then the one that the content's hash ranks first.
        """
        if not items:
            return {}, 0.0
        encoders = self._encoders(prefill)
        busy_s = {each.description.id: self._queue_s(each, Stage.ENCODE) for each in encoders}
        given = dict.fromkeys(busy_s, 0)
        chosen: dict[ContentHash, InstanceId] = {}
        slack_s = ENCODE_SLACK * max(self._token_s(Stage.ENCODE, name) for name in busy_s)
        for item in items:
            if item.key in chosen:
                continue
            cost_s = {
                each.description.id: self._item_s(each, prefill, item) + busy_s[each.description.id]
                for each in encoders
            }
            latest_s = min(cost_s.values()) + slack_s
            best = min(
                (each for each in encoders if cost_s[each.description.id] <= latest_s),
                key=lambda each: self._rank(each, item, given),
            ).description.id
            chosen[item.key], busy_s[best] = best, cost_s[best]
            given[best] += 1
        return chosen, max(busy_s[name] for name in chosen.values())

    def _encoders(self, prefill: InstanceView) -> Sequence[InstanceView]:
        """Those that are looked at for ``prefill``: the same for all alike that do not encode."""
        about = prefill.description
        kind = about.model, about.embedding
        if Stage.ENCODE in about.role:
            return self._usable(encoders_for(self._view, prefill, self._prompt, self._avoid))
        found = self._fed_by.get(kind)
        if found is None:
            usable = encoders_for(self._view, prefill, self._prompt, self._avoid)
            found = self._fed_by[kind] = self._usable(usable)
        return found

    def _token_s(self, stage: Stage, name: InstanceId) -> float:
        seconds = self._tokens_s.get((stage, name))
        if seconds is None:
            seconds = self._tokens_s[stage, name] = self._latencies.token_s(stage, name)
        return seconds

    def _usable(self, encoders: Sequence[InstanceView]) -> Sequence[InstanceView]:
        """Of many encoders the idlest, and those that hold a picture of the prompt."""
        if len(encoders) <= 2 * WIDTH:
            return encoders
        held = [each for each in encoders if self._coverage.of(each.description.id).items]
        names = {each.description.id for each in held}
        idle = nsmallest(2 * WIDTH, encoders, key=load)
        return [*held, *(each for each in idle if each.description.id not in names)]

    def _rank(
        self, encoder: InstanceView, item: Item, given: dict[InstanceId, int]
    ) -> tuple[bool, int, int]:
        name = encoder.description.id
        lacks = item.key not in self._coverage.of(name).items
        rank = self._affinities.get((item.key, name))
        if rank is None:
            rank = -int.from_bytes(affinity(item.key, encoder))
            self._affinities[item.key, name] = rank
        return lacks, given[name], rank

    def _item_s(self, encoder: InstanceView, prefill: InstanceView, item: Item) -> float:
        """Seconds to have an item's embedding made by ``encoder`` and brought to ``prefill``."""
        name, layout = encoder.description.id, encoder.description.embedding
        num_bytes = (
            0.0 if layout is None else layout.num_blocks(item.num_tokens) * layout.block_bytes
        )
        seconds = self._latencies.transfer_s(name, prefill.description.id, num_bytes)
        if item.key not in self._coverage.of(name).items:
            seconds += self._token_s(Stage.ENCODE, name) * item.num_tokens
        return seconds

    def _queue_s(self, instance: InstanceView, stage: Stage = Stage.PREFILL) -> float:
        """Seconds of what is pending at an instance, over all its stages, as if of ``stage``."""
        return load(instance) * self._token_s(stage, instance.description.id)

    def _read_s(self, instance: InstanceView, most: int) -> float:
        """Seconds to bring KV back from the instance's own lower tiers."""
        device, host, disk = (
            min(tokens, most) for tokens in self._coverage.of(instance.description.id).kv_tokens
        )
        each = _token_bytes(instance)
        on_host, on_disk = (host - device) * each, (disk - host) * each
        return on_host / TIER_BYTES_PER_S[Tier.HOST] + on_disk / TIER_BYTES_PER_S[Tier.DISK]


def _layout(instance: InstanceView) -> Layout:
    layout = instance.description.kv
    assert layout is not None, "pairs_of gives language instances only"
    return layout


def _token_bytes(instance: InstanceView) -> float:
    layout = _layout(instance)
    return layout.block_bytes / layout.block_size

"""Which instances serve a request: an encoder for each picture, one prefill, one decode.

Pure functions of a view of the cluster. Knows loads, layouts and content keys; no addresses.
"""

import hashlib
from collections.abc import Sequence
from itertools import count, product
from typing import Protocol

from triptych.core.errors import Unavailable
from triptych.core.ids import InstanceId
from triptych.core.layout import Layout
from triptych.core.lifecycle import Stage
from triptych.core.request import Item, Prompt
from triptych.core.view import ClusterView, Coverage, InstanceView, Route

ENCODE_SLACK = 512
"""Visual tokens by which an encoder may be busier than the idlest and still be preferred for a
picture that it has probably encoded before."""

NOTHING = Coverage()
"""Nothing is known to be cached anywhere."""

Pair = tuple[InstanceView, InstanceView]


class Placement(Protocol):
    """Chooses instances for one attempt of a request."""

    def choose(
        self,
        view: ClusterView,
        prompt: Prompt,
        avoid: frozenset[InstanceId] = frozenset(),
        coverage: Coverage = NOTHING,
    ) -> Route:
        """A route of ready instances whose layouts match. Those in ``avoid`` are taken only where
        there is no other. ``coverage`` may save work. Raises Unavailable, naming the stage, if
        there is no route."""
        ...


class LeastLoaded:
    """The pair with the fewest pending tokens, and a transfer counts as computing the prompt; so
    one instance for prefill and decode is preferred. A prefill instance that encodes does so for
    itself; other encoders are chosen by content, within a load slack."""

    def choose(
        self,
        view: ClusterView,
        prompt: Prompt,
        avoid: frozenset[InstanceId] = frozenset(),
        coverage: Coverage = NOTHING,  # noqa: ARG002
    ) -> Route:
        """See ``Placement``."""

        def cost(pair: Pair) -> int:
            prefill, decode = pair
            if prefill is decode:
                return load(prefill)
            return load(prefill) + load(decode) + len(prompt)

        prefill, decode = min(pairs_of(view, prompt, avoid), key=cost)
        encoders = encoders_for(view, prefill, prompt, avoid)
        encode = _spread(prompt.items, encoders) if prompt.items else ()
        return Route(encode, prefill.description.id, decode.description.id)


class RoundRobin:
    """Every pair, and every encoder, in turn, whatever they have to do; but a prefill instance that
    encodes does so for itself."""

    def __init__(self) -> None:
        self._turn = count()
        self._encode_turn = count()

    def choose(
        self,
        view: ClusterView,
        prompt: Prompt,
        avoid: frozenset[InstanceId] = frozenset(),
        coverage: Coverage = NOTHING,  # noqa: ARG002
    ) -> Route:
        """See ``Placement``."""
        pairs = pairs_of(view, prompt, avoid)
        alone = [pair for pair in pairs if pair[0] is pair[1]]
        prefill, decode = (alone or pairs)[next(self._turn) % len(alone or pairs)]
        encoders = encoders_for(view, prefill, prompt, avoid)
        encode = tuple(
            encoders[next(self._encode_turn) % len(encoders)].description.id for _ in prompt.items
        )
        return Route(encode, prefill.description.id, decode.description.id)


def pairs_of(view: ClusterView, prompt: Prompt, avoid: frozenset[InstanceId]) -> list[Pair]:
    """Prefill and decode instances that can hand KV over, and some encoder embeddings to the
    first; of these pairs, those with the fewest instances to avoid."""
    stages = (Stage.PREFILL, Stage.DECODE, *((Stage.ENCODE,) if prompt.items else ()))
    for stage in stages:
        if not view.serving(stage):
            raise Unavailable(f"{stage.value}: no instance is ready")
    pairs = [
        pair
        for pair in product(view.serving(Stage.PREFILL), view.serving(Stage.DECODE))
        if pair[0] is pair[1] or match(*pair)
    ]
    if not pairs:
        raise Unavailable("decode: no ready instance takes the KV of a ready prefill instance")
    if prompt.items:
        encoders = view.serving(Stage.ENCODE)
        pairs = [pair for pair in pairs if any(_feeds(encoder, pair[0]) for encoder in encoders)]
        if not pairs:
            raise Unavailable("encode: no ready instance feeds a ready prefill instance")
    num_avoided = [len({each.description.id for each in pair} & avoid) for pair in pairs]
    fewest = min(num_avoided)
    return [pair for pair, number in zip(pairs, num_avoided, strict=True) if number == fewest]


def encoders_for(
    view: ClusterView, prefill: InstanceView, prompt: Prompt, avoid: frozenset[InstanceId]
) -> Sequence[InstanceView]:
    """Encoders whose embeddings ``prefill`` takes, or ``prefill`` alone if it is one of them; none
    for a prompt without pictures."""
    if not prompt.items:
        return ()
    ready = [each for each in view.serving(Stage.ENCODE) if _feeds(each, prefill)]
    usable = [each for each in ready if each.description.id not in avoid] or ready
    # Prompts hold room for their pictures while they wait for them, and encoders wait for room in
    # the same cache: two instances that encoded for each other would wait for each other for ever.
    return [prefill] if prefill in usable else usable


def _spread(items: Sequence[Item], encoders: Sequence[InstanceView]) -> tuple[InstanceId, ...]:
    """An encoder for each item: of those not much busier than the idlest, one with the fewest
    pictures of this request; among these the one that the content's hash ranks first. Equal
    pictures go to one encoder."""
    idlest = min(map(load, encoders))
    eligible = [each for each in encoders if load(each) <= idlest + ENCODE_SLACK]
    num_given = {each.description.id: 0 for each in eligible}
    chosen: dict[bytes, InstanceId] = {}
    for item in items:
        if item.key in chosen:
            continue
        fewest = min(num_given.values())
        candidates = [each for each in eligible if num_given[each.description.id] == fewest]
        best = max(candidates, key=lambda each: affinity(item.key, each))
        chosen[item.key] = best.description.id
        num_given[best.description.id] += 1
    return tuple(chosen[item.key] for item in items)


def affinity(key: bytes, view: InstanceView) -> bytes:
    """Rendezvous hashing (Thaler and Ravishankar, 1998): an instance that comes or goes moves only
    its own share of the keys. An instance keeps its share when it restarts."""
    name = view.description.id.partition("@")[0]
    return hashlib.sha256(key + name.encode()).digest()


def load(view: InstanceView) -> int:
    """Tokens pending at an instance, over all its stages: they share one machine."""
    return sum(view.num_tokens.values())


def match(prefill: InstanceView, decode: InstanceView) -> bool:
    """Whether KV of the one can be used by the other."""
    same_model = prefill.description.model == decode.description.model
    return same_model and _interchangeable(prefill.description.kv, decode.description.kv)


def _feeds(encoder: InstanceView, prefill: InstanceView) -> bool:
    one, other = encoder.description, prefill.description
    return one.model == other.model and _interchangeable(one.embedding, other.embedding)


def _interchangeable(one: Layout | None, other: Layout | None) -> bool:
    return one is not None and other is not None and one.can_become(other)

"""Which instances serve a request: an encoder for each picture, one prefill, one decode.

Pure functions of a view of the cluster. Knows loads, layouts and content keys; no addresses.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import count, product
from typing import Protocol

import msgspec

from triptych.core.errors import Unavailable
from triptych.core.ids import InstanceId
from triptych.core.layout import Layout
from triptych.core.lifecycle import Stage
from triptych.core.request import Item, Prompt, Slo
from triptych.core.view import ClusterView, Coverage, InstanceView, Route

ENCODE_SLACK = 512
"""Visual tokens by which an encoder may be busier than the idlest and still be preferred for a
picture that it has probably encoded before."""

NOTHING = Coverage()
"""Nothing is known to be cached anywhere."""

Pair = tuple[InstanceView, InstanceView]

Spread = Callable[[Sequence[Item], Sequence[InstanceView]], tuple[InstanceId, ...]]
"""An encoder for each item."""


class Ask(msgspec.Struct, frozen=True):
    """What a request was promised, and what of it is left, when it is placed."""

    slo: Slo = Slo()
    elapsed_s: float = 0.0
    """Since it arrived, where it has no token yet: the first one is due so much sooner."""
    num_output: int = 64
    """Tokens that it is expected to draw from here on."""
    most_output: int = 64
    """Tokens for which it has to have room."""


ANYTHING = Ask()
"""No bound is known."""


class Placement(Protocol):
    """Chooses instances for one attempt of a request."""

    def choose(
        self,
        view: ClusterView,
        prompt: Prompt,
        avoid: frozenset[InstanceId] = frozenset(),
        coverage: Coverage = NOTHING,
        ask: Ask = ANYTHING,
    ) -> Route:
        """A route of ready instances whose layouts match. Those in ``avoid`` are taken only where
        there is no other. ``coverage`` may save work; ``ask`` is what the client hopes for. Raises
        Unavailable, naming the stage, if there is no route."""
        ...


class LeastLoaded:
    """The pair with the fewest pending tokens, and a transfer counts as computing the prompt; so
    one instance for prefill and decode is preferred. A prefill instance that encodes does so for
    itself; other encoders are chosen by ``spread``: by content within a load slack, or all on the
    idlest."""

    def __init__(self, spread: Spread | None = None) -> None:
        self._spread = spread or _spread

    def choose(
        self,
        view: ClusterView,
        prompt: Prompt,
        avoid: frozenset[InstanceId] = frozenset(),
        coverage: Coverage = NOTHING,  # noqa: ARG002
        ask: Ask = ANYTHING,  # noqa: ARG002
    ) -> Route:
        """See ``Placement``."""

        prefill, decode = min(
            (pair for block in pairs_of(view, prompt, avoid) for pair in block.least(load)),
            key=lambda pair: _pending(pair, len(prompt)),
        )
        encoders = encoders_for(view, prefill, prompt, avoid)
        encode = self._spread(prompt.items, encoders) if prompt.items else ()
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
        ask: Ask = ANYTHING,  # noqa: ARG002
    ) -> Route:
        """See ``Placement``."""
        blocks = pairs_of(view, prompt, avoid)
        alone = [each for block in blocks for each in block.both]
        turn = next(self._turn)
        if alone:
            prefill = decode = alone[turn % len(alone)]
        else:
            turn %= sum(map(len, blocks))
            for block in blocks:
                if turn < len(block):
                    break
                turn -= len(block)
            prefill, decode = block[turn]
        encoders = encoders_for(view, prefill, prompt, avoid)
        encode = tuple(
            encoders[next(self._encode_turn) % len(encoders)].description.id for _ in prompt.items
        )
        return Route(encode, prefill.description.id, decode.description.id)


class Block(msgspec.Struct, frozen=True):
    """Pairs of any of ``prefills`` with any of ``decodes``: that many, and never written out."""

    prefills: tuple[InstanceView, ...]
    decodes: tuple[InstanceView, ...]

    def __len__(self) -> int:
        return len(self.prefills) * len(self.decodes)

    def __getitem__(self, index: int) -> Pair:
        prefill, decode = divmod(index, len(self.decodes))
        return self.prefills[prefill], self.decodes[decode]

    @property
    def both(self) -> list[InstanceView]:
        """Instances that would be both."""
        decodes = {each.description.id for each in self.decodes}
        return [each for each in self.prefills if each.description.id in decodes]

    def least(self, cost: Callable[[InstanceView], float]) -> Iterator[Pair]:
        """The pairs among which is the best one of the block, if what a pair costs is the sum of
        what its two cost, or less where they are one."""
        yield min(self.prefills, key=cost), min(self.decodes, key=cost)
        if both := self.both:
            best = min(both, key=cost)
            yield best, best


def pairs_of(view: ClusterView, prompt: Prompt, avoid: frozenset[InstanceId]) -> list[Block]:
    """Prefill and decode instances that can hand KV over, and some encoder embeddings to the
    first; of these pairs, those with the fewest instances to avoid. At least one."""
    stages = (Stage.PREFILL, Stage.DECODE, *((Stage.ENCODE,) if prompt.items else ()))
    for stage in stages:
        if not view.serving(stage):
            raise Unavailable(f"{stage.value}: no instance is ready")
    blocks = _by_kind(view.serving(Stage.PREFILL), view.serving(Stage.DECODE))
    if not blocks:
        raise Unavailable("decode: no ready instance takes the KV of a ready prefill instance")
    if prompt.items:
        encoders = _kinds(view.serving(Stage.ENCODE))
        fed = [tuple(p for p in block.prefills if _is_fed(p, encoders)) for block in blocks]
        blocks = [
            Block(prefills, block.decodes)
            for prefills, block in zip(fed, blocks, strict=True)
            if prefills
        ]
        if not blocks:
            raise Unavailable("encode: no ready instance feeds a ready prefill instance")
    return _least_avoided(blocks, avoid) if avoid else blocks


def _by_kind(
    prefills: Sequence[InstanceView], decodes: Sequence[InstanceView]
) -> list[Block]:  # fmt: skip
    """One block for each kind of KV that both sides know."""
    found: list[tuple[InstanceView, list[InstanceView]]] = []
    for each in prefills:
        for first, same in found:
            if match(first, each):
                same.append(each)
                break
        else:
            found.append((each, [each]))
    takers = [
        tuple(each for each in decodes if each is first or match(first, each)) for first, _ in found
    ]
    return [Block(tuple(p), d) for (_, p), d in zip(found, takers, strict=True) if d]


def _kinds(encoders: Sequence[InstanceView]) -> list[InstanceView]:
    """One of each kind of embedding."""
    found: list[InstanceView] = []
    for each in encoders:
        if not any(_feeds(each, other) and _feeds(other, each) for other in found):
            found.append(each)
    return found


def _is_fed(prefill: InstanceView, encoders: Sequence[InstanceView]) -> bool:
    return any(_feeds(encoder, prefill) for encoder in encoders)


def _least_avoided(blocks: Sequence[Block], avoid: frozenset[InstanceId]) -> list[Block]:
    """The pairs with the fewest to avoid; one that is both counts once."""
    found: dict[int, list[Block]] = {}
    for block in blocks:
        sides = [
            [
                tuple(each for each in side if (each.description.id in avoid) is is_bad)
                for is_bad in (False, True)
            ]
            for side in (block.prefills, block.decodes)
        ]
        for one, other in product((0, 1), repeat=2):
            if sides[0][one] and sides[1][other]:
                found.setdefault(one + other, []).append(Block(sides[0][one], sides[1][other]))
        found.setdefault(1, []).extend(
            Block((each,), (each,)) for each in block.both if each.description.id in avoid
        )
    return next(found[number] for number in range(3) if found.get(number))


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


def together(items: Sequence[Item], encoders: Sequence[InstanceView]) -> tuple[InstanceId, ...]:
    """The idlest encoder for all items: no parallelism within a request, to compare with."""
    return (min(encoders, key=load).description.id,) * len(items)


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
    return one is not None and other is not None and (one == other or one.can_become(other))


def _pending(pair: Pair, prompt_len: int) -> int:
    prefill, decode = pair
    return load(prefill) if prefill is decode else load(prefill) + load(decode) + prompt_len

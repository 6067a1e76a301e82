"""Requests stay in their modality group while it serves all that they need."""

from scheduler.grouped import Grouped
from scheduler.placement import NOTHING
from triptych.core.errors import Unavailable
from triptych.core.handoff import Endpoint
from triptych.core.ids import ContentHash, InstanceId
from triptych.core.lifecycle import InstanceState
from triptych.core.request import Item, Prompt
from triptych.core.view import ClusterView, Description, InstanceView

TEXT = Prompt((1, 2, 3))
PICTURE = Prompt(tuple(range(60)), (Item(ContentHash(b"x" * 32), 3, 50, (1, 10, 20)),))


class Seen:
    """A placement that says what it was shown, and is lacking an instance now and then."""

    def __init__(self, least=1):
        self.least = least

    def choose(self, view, prompt, avoid=frozenset(), coverage=NOTHING, ask=None):
        names = [each.description.id for each in view.instances]
        if len(names) < self.least:
            raise Unavailable("none")
        return names


def view(*names):
    return ClusterView(
        tuple(
            InstanceView(
                Description(
                    InstanceId(name), (), "m", Endpoint(machine="m"), None, None, 0, 0, 0, 0, {}
                ),
                InstanceState.READY,
                {},
                {},
            )
            for name in names
        )
    )


ALL = view("decode-0@1", "encode-0@0", "prefill-0@2")


def test_nothing_is_grouped_without_groups():
    assert Grouped(Seen(), {}).choose(ALL, TEXT) == ["decode-0@1", "encode-0@0", "prefill-0@2"]


def test_groups_are_of_places_and_may_change():
    groups = {"encode-0": "multimodal", "prefill-0": "text"}
    placement = Grouped(Seen(), groups)
    assert placement.choose(ALL, TEXT) == ["decode-0@1", "prefill-0@2"]
    assert placement.choose(ALL, PICTURE) == ["decode-0@1", "encode-0@0"]
    groups["decode-0"] = "text"
    assert placement.choose(ALL, PICTURE) == ["encode-0@0"]


def test_a_group_that_lacks_a_stage_is_left():
    placement = Grouped(Seen(least=2), {"decode-0": "text", "prefill-0": "text"})
    assert len(placement.choose(ALL, PICTURE)) == 3

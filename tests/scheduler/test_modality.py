"""Text and pictures apart, until one of them has too much to do."""

import msgspec

from scheduler.modality import SPILL_TOKENS, Modality
from tests.scheduler.test_placement import TEXT, cluster, instance, prompt

NAMES = ("E-0", "P-0", "P-1", "P-2", "P-3", "D-0", "D-1")


def routes(view, share=0.5):
    policy = Modality(share)
    return policy.choose(view, TEXT), policy.choose(view, prompt("a"))


def test_text_and_pictures_have_instances_of_their_own():
    text, pictures = routes(cluster(*NAMES))
    assert (text.prefill, text.decode) == ("P-0", "D-0")
    assert (pictures.prefill, pictures.decode, pictures.encode) == ("P-2", "D-1", ("E-0",))


def test_the_share_is_of_each_role_and_leaves_both_something():
    assert routes(cluster(*NAMES), 0.25)[1].prefill == "P-3"
    assert routes(cluster(*NAMES), 1.0)[0].prefill == "P-0"
    assert routes(cluster(*NAMES), 0.01)[1].prefill == "P-3"


def test_the_only_instance_of_a_role_is_for_both():
    text, pictures = routes(cluster("E-0", "P-0", "D-0"))
    assert (text.prefill, pictures.prefill) == ("P-0", "P-0")


def test_an_overloaded_group_spills_into_the_other():
    for load, chosen in [(SPILL_TOKENS, "P-0"), (SPILL_TOKENS + 1, "P-1")]:
        view = cluster("E-0", instance("P-0", load), "P-1", "D-0")
        assert routes(view)[0].prefill == chosen


def test_a_group_that_lacks_a_stage_uses_the_others():
    view = cluster("E-0", "P-0", "P-1", "D-0")
    gone = msgspec.structs.replace(
        view, instances=tuple(v for v in view.instances if v.description.id != "E-0")
    )
    route = Modality(0.5).choose(gone, TEXT)
    assert route.prefill == "P-0"
    mixed = cluster("EP-0", "P-0", "P-1", "D-0")
    assert Modality(0.5).choose(mixed, prompt("a")).encode == ("EP-0",)

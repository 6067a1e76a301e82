"""Groups of a batch: every prompt once, what a group shares is shared, and much is saved."""

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.grouping import Group, Symbols, by_output, group, num_saved
from triptych.core.hashing import digest
from triptych.core.request import Item, Prompt

SEQUENCES = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=7).map(tuple), min_size=0, max_size=7
)


def shared_by(sequences: list[tuple[int, ...]]) -> int:
    depth = 0
    while (
        all(len(one) > depth for one in sequences) and len({one[depth] for one in sequences}) == 1
    ):
        depth += 1
    return depth


def partitions(members: list[int]):
    if not members:
        yield []
        return
    for rest in partitions(members[1:]):
        yield [[members[0]], *rest]
        for index in range(len(rest)):
            yield [*rest[:index], [members[0], *rest[index]], *rest[index + 1 :]]


@settings(max_examples=300, deadline=None)
@given(SEQUENCES)
def test_groups_hold_all_share_what_they_say_and_save_nearly_the_most(sequences):
    groups = group(sequences)
    assert sorted(m for one in groups for m in one.members) == list(range(len(sequences)))
    for one in groups:
        assert one.shared <= shared_by([sequences[index] for index in one.members])
    best = max(
        sum((len(part) - 1) * shared_by([sequences[i] for i in part]) for part in parts)
        for parts in partitions(list(range(len(sequences))))
    )
    assert 0.75 * best <= num_saved(groups) <= best


def test_the_picture_and_not_the_common_greeting_makes_the_groups():
    greeting = tuple(range(20, 30))
    prompts = []
    for index in range(9):
        key = digest("item", bytes([index % 3]))
        tokens = (*greeting, *[7] * 50, 40 + index)
        prompts.append(Prompt(tokens, (Item(key, 10, 50, (1, 2, 100)),)))
    symbols = Symbols()
    groups = group([symbols.of(prompt) for prompt in prompts])
    assert [one.members for one in groups] == [(0, 3, 6), (1, 4, 7), (2, 5, 8)]
    assert {one.shared for one in groups} == {60}


def test_long_answers_to_short_prompts_run_first():
    groups = [Group((0,), 100), Group((1, 2), 10), Group((3,), 5)]
    ordered = by_output(groups, [100, 20, 20, 5], [10, 60, 30, 5])
    assert [one.members for one in ordered] == [(1, 2), (3,), (0,)]


def test_deep_trees_do_not_recurse():
    sequences = [tuple(range(length)) for length in range(1, 1500)]
    groups = group(sequences)
    assert sorted(m for one in groups for m in one.members) == list(range(len(sequences)))

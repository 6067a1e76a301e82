"""What is kept of a table belongs to that object, and to no equal one."""

from triptych.executor.identity import ByIdentity


def test_the_same_object_is_looked_at_once():
    seen = []
    ends = ByIdentity(lambda table: seen.append(table) or (min(table), max(table)))
    numbers = [5, 3, 9]
    one, equal = tuple(numbers), tuple(numbers)
    assert [ends(one), ends(one), ends(equal)] == [(3, 9)] * 3
    assert len(seen) == 2
    assert seen[0] is one
    assert seen[1] is equal


def test_only_the_latest_are_kept():
    made = []
    known = ByIdentity(lambda table: made.append(table[0]) or table[0], most=2)
    tables = [(n, n) for n in range(3)]
    for index in (0, 1, 0, 2, 0, 1):
        assert known(tables[index]) == index
    assert made == [0, 1, 2, 1]


def test_a_table_that_is_gone_lends_its_identity_to_nobody():
    known = ByIdentity(lambda table: table[0], most=3)
    for number in range(1000):
        assert known((number,)) == number

import pytest

from triptych.cache.radix import Link, RadixTree
from triptych.core.errors import InvariantBroken
from triptych.core.ids import BlockId, ContentHash


def link(key: int, *tokens: int) -> Link:
    return Link(ContentHash(bytes([key])), bytes(tokens))


@pytest.fixture
def tree():
    tree = RadixTree("model")
    yield tree
    tree.check()


def grow(tree, *links, salt=b""):
    """A locked path of new blocks numbered on."""
    node = tree.root(salt)
    tree.lock(node)
    for each in links:
        node = tree.extend(node, each, BlockId(tree.num_blocks))
    return node


def test_equal_key_with_another_text_is_a_miss(tree):
    node = grow(tree, link(1, 5, 6))
    root = tree.root(b"")
    assert tree.find(root, link(1, 5, 6)) is node
    assert tree.find(root, link(1, 5, 7)) is None
    assert tree.extend(root, link(1, 5, 7), BlockId(9)) is None
    assert tree.extend(root, link(1, 5, 6), BlockId(9)) is node
    assert tree.num_blocks == 1


def test_locked_nodes_are_never_evicted(tree):
    node = grow(tree, link(1, 1), link(2, 2))
    assert tree.evict() is None
    tree.unlock(node)
    assert [tree.evict().block, tree.evict().block, tree.evict()] == [1, 0, None]
    assert not tree._roots


def test_inner_nodes_go_after_their_children(tree):
    long = grow(tree, link(1, 1), link(2, 2), link(3, 3))
    tree.unlock(long)
    short = grow(tree, link(1, 1), link(4, 4))
    assert tree.num_evictable == 2
    tree.unlock(short)
    assert [tree.evict().block for _ in range(4)] == [2, 1, 3, 0]
    assert tree.evict() is None


def test_unlock_without_a_lock_is_found(tree):
    node = grow(tree, link(1, 1))
    tree.unlock(node)
    with pytest.raises(InvariantBroken, match="not locked"):
        tree.unlock(node)


def test_check_finds_a_wrong_count():
    tree = RadixTree("model")
    grow(tree, link(1, 1))
    tree.num_evictable += 1
    with pytest.raises(InvariantBroken, match="num_evictable"):
        tree.check()

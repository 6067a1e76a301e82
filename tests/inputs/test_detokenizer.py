"""Text as it comes: never a broken character early, never another text in the end."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Judge

from tests.inputs.folders import DEMO
from triptych.inputs.detokenizer import Detokenizer, StopMatcher
from triptych.inputs.tokenizer import load_tokenizer

DEMO_WORDS = load_tokenizer(str(DEMO))
BYTES = load_tokenizer("oracle")
JUDGE = Judge.from_file(str(DEMO / "tokenizer.json"))


def grouped(data, items):
    """The items in groups of any size, empty ones too."""
    groups, start = [], 0
    while start < len(items):
        size = data.draw(st.integers(0, 4))
        groups.append(items[start : start + size])
        start += size
    return groups


@settings(max_examples=100, deadline=None)
@given(data=st.data(), ids=st.lists(st.integers(0, 691), max_size=60))
def test_any_tokens_equal_the_library(data, ids):
    """Random ids: most of their bytes are no UTF-8 at all."""
    detokenizer = Detokenizer(DEMO_WORDS)
    text = "".join(detokenizer.push(group) for group in grouped(data, ids)) + detokenizer.flush()
    assert text == JUDGE.decode(ids, skip_special_tokens=True)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), text=st.text(max_size=30))
def test_split_characters_come_whole(data, text):
    for tokenizer in (BYTES, DEMO_WORDS):
        ids = list(text.encode()) if tokenizer is BYTES else _byte_ids(text)
        detokenizer = Detokenizer(tokenizer)
        shown = ""
        for group in grouped(data, ids):
            shown += detokenizer.push(group)
            assert text.startswith(shown), "a character was shown before it was whole"
        assert shown == text and detokenizer.flush() == ""


def _byte_ids(text: str) -> list[int]:
    """One token per byte: the finest split there is."""
    by_bytes = {DEMO_WORDS.token_bytes(i): i for i in range(684)}
    return [by_bytes[bytes([byte])] for byte in text.encode()]


def test_unfinished_characters():
    detokenizer = Detokenizer(BYTES)
    assert detokenizer.push(list("é".encode())[:1]) == ""
    assert detokenizer.push([65]) == "\ufffdA"
    assert detokenizer.push([0xF0, 0x9F, 0x98]) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.push([66]) == "B"


def test_hidden_tokens_and_unused_ids():
    detokenizer = Detokenizer(BYTES)
    assert detokenizer.push([72, 256, 105, 261, 400, 511]) == "Hi"
    assert BYTES.token_bytes(256) == b"<|endoftext|>" and BYTES.token_bytes(400) == b""
    assert DEMO_WORDS.token_bytes(760) == b"" and DEMO_WORDS.is_hidden(686)


def test_text_round_trips():
    for text in ("Hello, wörld 漢字 😀\n\n 12", "", "a" * 100):
        for tokenizer in (BYTES, DEMO_WORDS):
            ids = tokenizer.encode(text)
            assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text


def naive_stop(text: str, strings: tuple[str, ...]) -> tuple[str, bool]:
    """Read character by character; stop when a stop string is complete (the longest of several)."""
    for end in range(1, len(text) + 1):
        whole = [string for string in strings if text[:end].endswith(string)]
        if whole:
            return text[: end - max(map(len, whole))], True
    return text, False


@settings(max_examples=100, deadline=None)
@given(
    data=st.data(),
    text=st.text("ab\n", max_size=30),
    strings=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3).map(tuple),
)
def test_stop_strings_whatever_the_grouping(data, text, strings):
    matcher = StopMatcher(strings)
    shown, is_stopped = "", False
    for group in grouped(data, text):
        more, is_stopped = matcher.push(group)
        shown += more
        assert not any(string in shown for string in strings)
        if is_stopped:
            break
    if not is_stopped:
        shown += matcher.flush()
    assert (shown, is_stopped) == naive_stop(text, strings)


def test_nothing_is_held_back_without_need():
    matcher = StopMatcher(("STOP",))
    assert matcher.push("hello S") == ("hello ", False)
    assert matcher.push("T") == ("", False)
    assert matcher.push("R S") == ("STR ", False)
    assert matcher.push("TOP more") == ("", True)
    assert StopMatcher(()).push("anything") == ("anything", False)


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(("a", ""))

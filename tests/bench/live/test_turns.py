"""Arrivals written out: deterministic text and pictures, turns of a conversation, calibration."""

import io

import pytest
from PIL import Image as Pillow

from bench.live.sender import Answer, calibrate
from bench.live.turns import Album, Composer, Turn, Wording, words_of
from bench.workload import Arrival, Image, Text


def test_a_longer_text_begins_with_the_shorter():
    assert words_of(7, 40).startswith(words_of(7, 12) + " ")
    assert words_of(7, 12) != words_of(8, 12)
    assert len(words_of(7, 40).split()) == 40


def test_pictures_are_drawn_once_and_to_size():
    image = Image(5, 56, 84)
    album = Album(2 * len(Album().png(image)))
    png = album.png(image)
    assert album.png(image) is png
    assert Pillow.open(io.BytesIO(png)).size == (56, 84)
    for content in range(3):
        album.png(Image(content, 56, 84))
    again = album.png(image)
    assert again is not png and again == png, "drawn again, to the same bytes"
    assert album.png(Image(6, 56, 84)) != png


def test_text_has_the_tokens_that_were_asked_for_on_average():
    composer = Composer(Wording(tokens_per_word=2.5, is_measured=True))
    ask = composer.ask(Arrival(0.0, (Text(1, 100),), 9, slo="strict"), {}, 30.0)
    (turn,) = ask.turns
    assert len(turn.parts[0].split()) == 40
    assert (ask.num_output, ask.slo, ask.timeout_s) == (9, "strict", 30.0)


def test_a_later_turn_quotes_the_real_answer():
    image = Image(1, 28, 28)
    arrival = Arrival(0.0, (image, Text(1, 5), Text(77, 8), Text(2, 4)), 8, session="s")
    composer = Composer(Wording())
    ask = composer.ask(arrival, {77: "a red circle"}, 30.0)
    assert [turn.role for turn in ask.turns] == ["user", "assistant", "user"]
    assert isinstance(ask.turns[0].parts[0], bytes)
    assert ask.turns[1] == Turn("assistant", ("a red circle",))
    unknown = composer.ask(arrival, {77: ""}, 30.0)
    assert len(unknown.turns[1].parts[0].split()) == 8, "words stand in for what never came"
    assert len(composer.ask(arrival, {}, 30.0).turns) == 1


class Counting:
    """Counts as a tokenizer of 1.25 tokens a word with 11 around."""

    def __init__(self, tokens_per_word=1.25):
        self.tokens_per_word = tokens_per_word

    def prepare(self, ask):
        return ask

    async def send(self, ask, on_tokens):
        on_tokens(1)
        count = len(ask.turns[0].parts[0].split())
        return Answer(prompt_tokens=round(11 + count * self.tokens_per_word))


async def test_calibration_finds_the_tokenizer():
    found = await calibrate(Counting())
    assert found.tokens_per_word == pytest.approx(1.25)
    assert found.template_tokens == pytest.approx(11.0)
    assert found.is_measured


async def test_a_server_that_counts_nothing_is_believed_to_have_a_token_a_word():
    counting = Counting(0.0)
    assert await calibrate(counting) == Wording()

"""Prompts: token by token what Transformers makes of ordinary text; nothing but text of any other.

The judge is Transformers' tokenizer and chat template on the same folder.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.inputs.folders import DEMO, PLAIN_ADDED, qwen_like
from tests.inputs.pictures import encoded, noise
from triptych.core.config import LimitsConfig
from triptych.core.errors import RequestError
from triptych.core.request import ImagePart, Message, Prompt, TextPart
from triptych.inputs.images import probe
from triptych.inputs.model_card import load_card
from triptych.inputs.prompts import PromptBuilder, check_length

TEXTS = [
    "What is this?",
    "",
    " ",
    "\n",
    "\n\nstart",
    "end\n\n",
    " lead  trail ",
    "a" * 300,
    "don't I'll",
    "ünïcödé \u0301 e\u0301 Å ﬁ 漢字 😀👩\u200d👩\u200d👧",
    "1234567890 3.14",
    "tab\tand\r\nnewline",
    "a\u00a0b\u3000c",
    "!!! ??? ... <tag> </tag> <",
    "{{ messages }} {% raw %} {{ 7*7 }}",
    "\u200b\u200d\ufeff",
    "<|",
    "|>",
]


@pytest.fixture(scope="module", params=["demo", "qwen_like"])
def folder(request, tmp_path_factory):
    if request.param == "demo":
        return str(DEMO)
    return str(qwen_like(tmp_path_factory.mktemp("models") / "qwen_like"))


@pytest.fixture(scope="module")
def builder(folder):
    return PromptBuilder(load_card(folder), folder)


@pytest.fixture(scope="module")
def judge(folder):
    return AutoTokenizer.from_pretrained(folder)


def picture(width=60, height=40, seed=0):
    return probe(encoded(noise(width, height, seed=seed)), LimitsConfig())


def message(role, *parts):
    number = iter(range(99))
    made = (TextPart(part) if isinstance(part, str) else ImagePart(next(number)) for part in parts)
    return Message(role, tuple(made))


def judged(judge, messages):
    """Transformers' ids, with one placeholder per picture."""
    plain = []
    for one in messages:
        parts = [
            {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}
            for part in one.parts
        ]
        alone = len(parts) == 1 and "text" in parts[0]
        plain.append({"role": one.role, "content": parts[0]["text"] if alone else parts})
    ids = judge.apply_chat_template(plain, add_generation_prompt=True, tokenize=True)
    return list(ids if isinstance(ids, list) else ids["input_ids"])


def collapsed(prompt: Prompt) -> list[int]:
    """The prompt with one placeholder per picture again."""
    ids, position = [], 0
    for item in prompt.items:
        ids += [*prompt.token_ids[position : item.offset], prompt.token_ids[item.offset]]
        position = item.end
    return [*ids, *prompt.token_ids[position:]]


@pytest.mark.parametrize("text", TEXTS)
def test_text_equals_transformers(builder, judge, text):
    for messages in (
        [message("user", text)],
        [message("system", text), message("user", "hi"), message("assistant", text)],
        [message("user", text, "two", text)],
    ):
        prompt = builder.expand(messages, [], b"")
        assert list(prompt.token_ids) == judged(judge, messages)


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(st.text(max_size=40), min_size=1, max_size=4))
def test_any_text_equals_transformers(builder, judge, texts):
    messages = [message("user", *texts), message("assistant", texts[0])]
    if any(name in "".join(texts) for name in builder.tokenizer.control):
        return
    assert list(builder.expand(messages, [], b"").token_ids) == judged(judge, messages)


def test_pictures_equal_transformers(builder, judge, folder):
    geometry = load_card(folder).image
    sizes = [(28, 28), (60, 40), (301, 97), (1, 1), (640, 480)]
    pictures = [picture(*size, seed=index) for index, size in enumerate(sizes)]
    messages = [
        Message("user", (TextPart("a"), ImagePart(0), TextPart("\nb\n"), ImagePart(1))),
        message("assistant", "two."),
        Message("user", (ImagePart(2), ImagePart(3), ImagePart(4), TextPart(""))),
    ]
    prompt = builder.expand(messages, pictures, b"salt")
    assert collapsed(prompt) == judged(judge, messages)
    processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": geometry.min_pixels, "longest_edge": geometry.max_pixels}
    )
    for item, (width, height) in zip(prompt.items, sizes, strict=True):
        image = np.zeros((height, width, 3), np.uint8)
        grid = processor(images=[image], input_data_format="channels_last", return_tensors="np")
        assert item.grid == tuple(grid["image_grid_thw"][0])
        assert item.num_tokens == item.grid[1] * item.grid[2] // 4
        span = prompt.token_ids[item.offset : item.end]
        assert set(span) == {load_card(folder).image_token_id}
        assert prompt.token_ids[item.offset - 1] == load_card(folder).vision_start_token_id
        assert prompt.token_ids[item.end] == load_card(folder).vision_end_token_id


def test_control_tokens_in_text_stay_text(builder, folder):
    """Whole, split over parts, nested, doubled: the ids spell the text, none is a command."""
    names = sorted(builder.tokenizer.control)
    attacks = [[name] for name in names] + [[name[:k], name[k:]] for name in names for k in (1, 5)]
    attacks += [[name[:3], "", name[3:]] for name in names]
    attacks += [
        ["<<|im_end|>|im_end|>", "<<|im_start|>"],
        ["".join(names) * 2],
        ["<|<|im_end|>im_end|>"],
    ]
    own = [i for i in builder.expand([message("user", "x")], [], b"").token_ids if _is(builder, i)]
    for parts in attacks:
        for role in ("user", "system", "assistant"):
            messages = [message("user", "x")] if role == "assistant" else []
            messages = [*messages, message(role, *parts)]
            prompt = builder.expand(messages, [], b"")
            text = b"".join(map(builder.tokenizer.token_bytes, prompt.token_ids)).decode()
            assert "".join(parts) in text
            plain = [message(one.role, "x") for one in messages]
            expected = builder.expand(plain, [], b"").token_ids
            assert [i for i in prompt.token_ids if _is(builder, i)] == [
                i for i in expected if _is(builder, i)
            ]
    assert own
    if "qwen_like" in folder:
        assert set(PLAIN_ADDED) <= set(names)


def _is(builder, token):
    return token in builder.tokenizer.control.values()


def test_a_text_of_placeholders_is_no_picture(builder):
    pad = "<|vision_start|><|image_pad|><|vision_end|>"
    assert builder.expand([message("user", pad * 3)], [], b"").items == ()
    prompt = builder.expand([Message("user", (TextPart(pad), ImagePart(0)))], [picture()], b"")
    assert len(prompt.items) == 1


def test_private_characters_in_text_survive(builder, judge):
    text = "".join(map(chr, range(0xF0000, 0xF0010))) + "<|im_end|"
    prompt = builder.expand([message("user", text)], [], b"")
    assert list(prompt.token_ids) == judged(judge, [message("user", text)])


@pytest.mark.parametrize(
    ("parts", "num_pictures"),
    [([0], 0), ([], 1), ([0, 0], 1), ([0], 2), ([1], 1), ([0, 2], 2), ([0, 1], 1)],
)
def test_count_mismatch_is_refused(builder, parts, num_pictures):
    messages = [Message("user", (TextPart("x"), *map(ImagePart, parts)))]
    with pytest.raises(RequestError) as caught:
        builder.expand(messages, [picture(seed=i) for i in range(num_pictures)], b"")
    assert caught.value.field == "messages"


def test_unknown_role(builder):
    with pytest.raises(RequestError, match="role must be"):
        builder.expand([message("root", "x")], [], b"")


def test_order_of_pictures_follows_the_places(builder):
    first, second = picture(28, 28), picture(200, 100, seed=1)
    swapped = [Message("user", (ImagePart(1), ImagePart(0)))]
    prompt = builder.expand(swapped, [first, second], b"")
    straight = builder.expand([Message("user", (ImagePart(0), ImagePart(1)))], [second, first], b"")
    assert prompt == straight


def test_item_keys(builder):
    """Equal exactly for the same bytes of the same tenant; place and neighbours are no part."""
    one, other = picture(), picture(seed=1)

    def keys(pictures, salt=b"a"):
        parts = tuple(map(ImagePart, range(len(pictures))))
        return [item.key for item in builder.expand([Message("user", parts)], pictures, salt).items]

    assert keys([one, one])[0] == keys([one, one])[1] == keys([one])[0]
    assert keys([one]) != keys([other])
    assert keys([one], b"a") != keys([one], b"b")
    wide, high = picture(60, 40), picture(40, 60)
    assert keys([wide]) != keys([high])


def test_check_length():
    prompt = Prompt((1,) * 10)
    check_length(prompt, 5, 15)
    with pytest.raises(RequestError, match="limit of 14") as caught:
        check_length(prompt, 5, 14)
    assert caught.value.status == "too_large"


def test_oracle():
    builder = PromptBuilder(load_card("oracle"), "oracle")
    prompt = builder.expand([Message("user", (TextPart("é"), ImagePart(0)))], [picture()], b"")
    pad = prompt.items[0].num_tokens
    assert list(prompt.token_ids) == [
        *[260, *b"user\n", *"é".encode(), 258, *[257] * pad, 259, 261, *b"\n"],
        *[260, *b"assistant\n"],
    ]

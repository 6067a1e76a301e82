"""What is read from a model folder, in its spellings, and what makes two folders the same."""

import json
import shutil

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.inputs.folders import DEMO, qwen_like
from triptych.core.errors import ConfigError
from triptych.inputs import oracle_words
from triptych.inputs.model_card import load_card


def test_demo():
    card = load_card(str(DEMO))
    config = json.loads((DEMO / "config.json").read_text())
    assert (card.name, card.family) == ("demo_model", "qwen2_5_vl")
    assert card.vocab_size == config["vocab_size"]
    assert card.eos_token_ids == tuple(
        json.loads((DEMO / "generation_config.json").read_text())["eos_token_id"]
    )
    assert card.image_token_id == config["image_token_id"]
    assert (card.image.min_pixels, card.image.max_pixels) == (112 * 112, 448 * 448)
    assert (card.image.factor, card.image.temporal_patch_size) == (28, 2)


def test_other_spellings_say_the_same(tmp_path):
    demo, other = load_card(str(DEMO)), load_card(str(qwen_like(tmp_path / "m")))
    same = ("name", "fingerprint")
    for field in demo.__struct_fields__:
        assert field in same or getattr(demo, field) == getattr(other, field), field
    assert demo.fingerprint != other.fingerprint


def test_oracle():
    card = load_card("oracle")
    assert (card.name, card.family, card.vocab_size) == ("oracle", "oracle", 512)
    assert card.eos_token_ids == (256,) and card.image_token_id == 257
    assert max(oracle_words.CONTROL_TEXT.values()) < card.vocab_size
    assert load_card("oracle") == card


def test_fingerprint_sees_every_file(tmp_path):
    def card_of(change):
        folder = tmp_path / "m"
        shutil.rmtree(folder, ignore_errors=True)
        qwen_like(folder)
        weights = np.arange(200_000, dtype=np.float32)
        save_file({"a": weights}, folder / "model.safetensors")
        change(folder, weights)
        return load_card(str(folder)).fingerprint

    def other_values(folder, weights):
        save_file({"a": weights + 1}, folder / "model.safetensors")

    def other_name(folder, weights):
        save_file({"b": weights}, folder / "model.safetensors")

    def another_file(folder, weights):
        save_file({"b": weights}, folder / "more.safetensors")

    def other_processor(folder, _):
        path = folder / "processor_config.json"
        path.write_text(path.read_text().replace("200704", "200705"))

    def other_tokenizer(folder, _):
        path = folder / "tokenizer.json"
        path.write_text(path.read_text() + " ")

    plain = card_of(lambda *_: None)
    assert card_of(lambda *_: None) == plain
    changes = (other_values, other_name, another_file, other_processor, other_tokenizer)
    assert len({plain, *map(card_of, changes)}) == 1 + len(changes)


def test_older_spelling_of_eos(tmp_path):
    folder = qwen_like(tmp_path / "m")
    (folder / "generation_config.json").unlink()
    assert load_card(str(folder)).eos_token_ids == (686,)
    config = json.loads((folder / "config.json").read_text())
    for name in ("eos_token_id", "image_token_id", "vision_start_token_id"):
        del config[name]
    (folder / "config.json").write_text(json.dumps(config))
    card = load_card(str(folder))
    assert (card.eos_token_ids, card.image_token_id) == ((686,), 690)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", None, "config.json is missing"),
        ("config.json", "{", "cannot be read"),
        ("config.json", "[]", "not a JSON object"),
        ("config.json", '{"model_type": "x"}', "no vocab_size"),
        ("processor_config.json", None, "is missing"),
        ("processor_config.json", '{"image_processor": {"resample": 2}}', "bicubic"),
        ("processor_config.json", '{"image_processor": {"image_mean": [1]}}', "three values"),
        ("processor_config.json", '{"image_processor": {"max_pixels": 1}}', "do not fit"),
        ("model.safetensors", "\xff" * 20, "not a safetensors"),
    ],
)
def test_wrong_folders_are_named(tmp_path, file, text, message):
    folder = qwen_like(tmp_path / "m")
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_card(str(folder))


def test_no_folder():
    with pytest.raises(ConfigError, match="is not a folder"):
        load_card("/no/such/folder")


def test_geometry_has_a_name_of_its_own():
    geometry = load_card("oracle").image
    other = msgspec.structs.replace(geometry, max_pixels=geometry.max_pixels + 1)
    assert geometry.fingerprint != other.fingerprint

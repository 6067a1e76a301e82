"""Costs by name, and what a wrong name is answered."""

import pytest

from simulator.costs.card import Card, from_file, to_json
from simulator.costs.devices import LINKS
from simulator.costs.registry import costs, names
from triptych.core.errors import ConfigError


def test_every_model_of_the_issue_is_there():
    models = {name.partition(":")[2] for name in names() if name.startswith("h200:")}
    assert {"qwen2.5-vl-7b", "qwen2.5-vl-32b", "qwen2.5-vl-72b", "llava-1.5-7b"} <= models
    assert {"internvl2-8b", "internvl2-26b", "opt-13b"} <= models
    assert {"a100:opt-13b/distserve", "a100:opt-66b/distserve"} <= set(names())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("h200:gpt-5", "h200:qwen2.5-vl-7b"),
        ("", "file:PATH"),
        ("h200:qwen2.5-vl-7b,tp=3", "known: 1, 2, 4"),
        ("h200:qwen2.5-vl-7b,tp=two", "not a number"),
        ("h200:qwen2.5-vl-7b,tp=0", "within 1"),
        ("h200:qwen2.5-vl-7b,speed=2", "one of tp, pp"),
        ("h200:qwen2.5-vl-7b,tp=1,tp=1", "once"),
        ("h200:qwen2.5-vl-7b,step_ms=-1", "within 0"),
        ("h200:qwen2.5-vl-7b,step_ms=nan", "within 0"),
        ("h200:qwen2.5-vl-7b,pp=2", "does not apply"),
        ("a100:opt-13b/distserve,step_ms=1", "does not apply"),
        ("h200:qwen2.5-vl-72b,tp=1", "known: 2, 4, 8"),
        ("file:/nowhere", "nowhere"),
    ],
)
def test_a_wrong_name_is_answered_with_what_is_known(name, told):
    with pytest.raises(ConfigError, match=told):
        costs(name)


def test_overheads_can_be_stated():
    usual, none, slow = (
        costs(f"h200:qwen2.5-vl-7b{option}").costs.language_s((), 1, 1000)
        for option in ("", ",step_ms=0", ",step_ms=5")
    )
    assert usual - none == pytest.approx(1e-3)
    assert slow - none == pytest.approx(5e-3)


def test_a_card_comes_back_from_a_file(tmp_path):
    for name in ("a100:llava-1.5-7b,tp=2", "a100:opt-13b/distserve"):
        card = costs(name)
        path = tmp_path / "card.json"
        path.write_bytes(to_json(card))
        again = costs(f"file:{path}")
        assert isinstance(again, Card)
        assert again.sizes == card.sizes
        assert again.costs.language_s([(0, 99)], 3, 700) == pytest.approx(
            card.costs.language_s([(0, 99)], 3, 700), rel=1e-4
        )
    path.write_text('{"source": "x"}')
    with pytest.raises(ConfigError, match="sizes"):
        from_file(path)


def test_links_are_in_order():
    slow = ["tcp-25g", "tcp-100g", "rdma-200g", "pcie-4", "rdma-400g", "pcie-5", "nvlink-h200"]
    seconds = [LINKS[name].seconds(1e9) for name in slow]
    assert seconds == sorted(seconds, reverse=True)
    assert LINKS["rdma-400g"].seconds(0) == 5e-6

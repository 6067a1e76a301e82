"""The study of sparse attention: its generator, its figures, its page and its picture."""

import pytest
import torch

from examples.sparse_attention import __main__ as study
from examples.sparse_attention.measure import ExactTiles, Sample, tile_mass
from examples.sparse_attention.plot import Panel, draw
from examples.sparse_attention.settings import BOUND, Setting, large, small
from examples.sparse_attention.synthetic import HEADS, TEXT_BEHIND, context
from triptych.executor.attention.selectors.rules import Rules, recall
from triptych.executor.attention.selectors.xattention import XAttention

RULES = Rules(32, 32, min_tokens=0)


@pytest.fixture(scope="module")
def video():
    return context(2)


@pytest.fixture(scope="module")
def sample(video):
    return Sample(video.query, video.keys, video.values, video.spans, 1.0, RULES)


def test_synthetic_attention_has_its_structure(video, sample):
    view = sample.view
    assert view.heads == len(HEADS)
    assert view.spans[0].end + TEXT_BEHIND == view.context
    rows = torch.arange(900, 1100)
    weights = view.weights(rows)
    lags = rows[:, None] - torch.arange(view.context)
    assert weights[0][lags.abs() < 200].sum() / 200 > 0.4, "near"
    is_same = (lags % 560 < 12) | (lags % 560 > 548)
    assert weights[1][is_same].sum() / 200 > 0.5, "the same place of a frame"
    again = context(2)
    assert torch.equal(again.query, video.query)


def test_losses_are_what_they_say(sample):
    selector = XAttention(0.6, 16, RULES)
    view = sample.view
    loss = sample.loss(selector)
    mask = selector.select(view.query, view.keys, view.spans, scale=1.0)
    assert torch.allclose(loss.recall, recall(mask, view, sample._rows), atol=1e-5)
    whole = sample.loss(XAttention(1.0, 16, Rules(32, 32)))
    assert whole.density == 1.0
    assert torch.allclose(whole.recall, torch.ones(()), atol=1e-5)
    assert whole.error.max() < 1e-5
    assert loss.density < 1.0 < 1.0 + loss.error.mean()


def test_exact_tiles_are_the_bound(sample):
    view = sample.view
    by_hand = view.weights(torch.arange(0, 32, 4)).sum(1)[:, :32].sum(-1)
    assert torch.allclose(tile_mass(view)[:, 0, 0], by_hand, atol=1e-3)
    mine, bound = sample.loss(XAttention(0.6, 16, RULES)), sample.loss(ExactTiles(0.9, RULES))
    assert bound.recall.mean() > 0.9
    assert bound.recall.mean() > mine.recall.mean() or bound.density < mine.density


def test_table_and_picture(sample, tmp_path):
    settings = [Setting("xattention", f"tau {tau}", XAttention(tau, 16, RULES)) for tau in (0.5, 1)]
    settings.append(Setting(BOUND, "tau 0.9", ExactTiles(0.9, RULES)))
    rows = [study.row_of(one, [sample.loss(one.selector)]) for one in settings]
    rows = [rows[0]._replace(accuracy=0.5), rows[1]._replace(accuracy=1.0), rows[2]]
    lines = study.table(rows).splitlines()
    assert len(lines) == 5
    assert {line.count("|") for line in lines} == {8}
    assert lines[3].startswith("| xattention | tau 1 | ")
    answers = study.lines(rows, is_accuracy=True)
    assert list(answers) == ["xattention"]
    assert [y for _, y, _ in answers["xattention"]] == [0.5, 1.0]
    panels = [Panel("one", "y", study.lines(rows)), Panel("two", "y", answers, 0.9)]
    draw([*panels, panels[0]], tmp_path / "new" / "plot.png", BOUND)
    assert (tmp_path / "new" / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_every_family_has_several_settings():
    for settings in (small(), large()):
        families = [one.family for one in settings]
        assert all(families.count(family) >= 3 for family in families)


@pytest.mark.slow
def test_the_whole_study_on_little(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: begin -->\nold\n<!-- table: end -->\nafter\n")
    words = ["--questions", "2", "--prompts", "1", "--frames", "1", "--page", str(page)]
    assert study.main([*words, "--plot", str(tmp_path / "plot.png")]) == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert text.count("| xattention |") == 9
    assert "right when dense" in capsys.readouterr().out
    assert (tmp_path / "plot.png").exists()

"""The computed overlap: constants and cases by hand, limits that must hold."""

import pytest

from bench.overlap import analytic
from bench.overlap.analytic import KV_BYTES, LAYERS, LINKS, MESSAGE_S, handover, prefill_s, ttft_s


def test_bytes_are_those_of_the_published_configuration():
    assert KV_BYTES == 57_344
    assert analytic.EMBEDDING_BYTES == 7_168


def test_a_layer_by_hand():
    """1,024 tokens: 233,046,016 weights at 790 TFLOP/s, 524,800 pairs of positions at 230."""
    weights = 3584 * 4608 + 3584 * 3584 + 3 * 3584 * 18_944
    gemm = 2 * 1024 * weights / 790e12
    attention = 4 * (1024 * 1025 / 2) * 28 * 128 / 230e12
    passes = 1024 * 2 * (10 * 3584 + 3 * 18_944) / 4.8e12
    assert analytic.layer_s(1024, 1024) == pytest.approx(gemm + attention + passes)


def test_few_tokens_cost_at_least_the_reading_of_the_weights():
    assert analytic.layer_s(1, 1) > 2 * 233e6 / 4.8e12


def test_chunks_cover_a_prompt_once():
    assert analytic.chunks(5000, 2048) == [(2048, 2048), (2048, 4096), (904, 5000)]
    assert analytic.chunks(2048, 2048) == [(2048, 2048)]
    assert analytic.chunks(1, 2048) == [(1, 1)]


def test_rates_lie_between_their_neighbours():
    assert analytic._rate(((10, 1.0), (20, 3.0)), 15) == 2.0
    assert analytic._rate(((10, 1.0), (20, 3.0)), 20) == 3.0
    assert analytic._rate(((10, 1.0), (20, 3.0)), 1) == 1.0
    assert analytic._rate(((10, 1.0), (20, 3.0)), 99) == 3.0


@pytest.mark.parametrize("tokens", [777, 1024, 4096, 16384])
@pytest.mark.parametrize("rate", LINKS.values())
def test_the_earlier_bytes_leave_the_less_is_waited_for(tokens, rate):
    after, chunk, layer = (handover(tokens, rate, way) for way in ("after", "chunk", "layer"))
    assert after.prefill_s == chunk.prefill_s == layer.prefill_s == prefill_s(tokens)
    assert after.hidden == pytest.approx(0.0, abs=1e-9)
    assert after.transfer_s == pytest.approx(MESSAGE_S + tokens * KV_BYTES / rate)
    assert chunk.exposed_s <= after.exposed_s + 1e-12
    assert 0.0 <= layer.exposed_s <= chunk.exposed_s + LAYERS * MESSAGE_S


def test_one_chunk_by_hand():
    """A link of exactly ten times a layer's pace: nine tenths of each layer's time are waited for
    by the next piece, so the last piece ends 28 transfers behind the first layer."""
    layer = analytic.layer_s(1024, 1024)
    piece = 10 * layer
    rate = 1024 * KV_BYTES / LAYERS / (piece - MESSAGE_S)
    found = handover(1024, rate, "layer")
    assert found.transfer_s == pytest.approx(LAYERS * piece)
    assert found.exposed_s == pytest.approx(layer + LAYERS * piece - prefill_s(1024))


def test_a_fast_link_leaves_nothing_and_a_slow_one_is_the_bound():
    assert handover(4096, 450e9, "layer").hidden == 1.0
    slow = handover(4096, 1e6, "layer")
    assert slow.exposed_s == pytest.approx(slow.transfer_s, rel=0.01)


def test_overlap_saves_what_encoding_and_prefill_share():
    alone = ttft_s(1, 50e9, is_overlapped=False)
    assert ttft_s(1, 50e9, is_overlapped=True) == alone, "one picture overlaps with nothing"
    for pictures in (2, 4, 8):
        apart = ttft_s(pictures, 50e9, is_overlapped=False)
        together = ttft_s(pictures, 50e9, is_overlapped=True)
        saved = (pictures - 1) * analytic.encode_s()
        assert apart - together == pytest.approx(saved, rel=0.05), "encode is the shorter stage"
        assert ttft_s(pictures, 50e9, is_overlapped=False, encoders=2) < apart


def test_tables_have_a_line_for_every_case():
    assert len(analytic.hidden_table().splitlines()) == 2 + 3 * len(LINKS)
    assert len(analytic.ttft_table().splitlines()) == 2 + 1 + 3 + 3

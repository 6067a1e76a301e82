"""A model's steps from measured launches: which products, attentions and all-reduces a layer is
made of, summed over layers and fitted to ``Fitted``.

Knows shapes and tables. What no table has (passes over activations, launches, the host) is in
``Overheads``, stated and replaceable.
"""

from itertools import pairwise

import msgspec

from scheduler.curves import Curve, rising
from scheduler.fitted import Attention, DecodeAttention, FitError, Fitted, fit_error
from simulator.costs.shapes import BYTES, Language, Shape, Vision
from simulator.costs.tables import Grid, Tables

TOLERANCE = 0.02
"""What leaving out a point of a curve may change."""
TILES = (1, 64, 128)
EXTRA_KEYS = (0, 50, 100, 150, 200, 300, 400, 500, 600, 800, 1000)
"""What ``Attention`` is fitted over."""


class Overheads(msgspec.Struct, frozen=True, kw_only=True):
    """What sums of kernels lack. Assumptions, not measurements."""

    step_s: float = 1e-3
    """A language step: scheduling, inputs, the sampler, outputs. About 1 ms where decode runs from
    CUDA graphs and the host works ahead; 3 to 6 ms where it does not."""
    sequence_s: float = 5e-6
    """Each sequence's share of that: its rows in and its token out."""
    vision_step_s: float = 1e-3
    """An encoder step: no graph, but the host runs ahead of the device within it."""
    memory_share: float = 0.8
    """Of the data sheet's bytes per second that passes over activations reach. 0: none counted."""


def compose(
    tables: Tables, shape: Shape, tp: int = 1, overheads: Overheads | None = None
) -> Fitted:
    """Costs of an instance of ``tp`` devices: the decoder is split, the encoder copied to each and
    pictures spread over them. Raises ConfigError where the tables do not reach."""
    overheads = overheads or Overheads()
    language, vision = shape.language, shape.vision
    chunk, chunk_error = fit_attention(_prompts(tables, language, tp), 0.5, language.layers)
    decode, decode_error = _decode_attention(tables, language, tp)
    errors = {
        "products": tables.gemm.error(),
        "chunk_attention": chunk_error,
        "decode_attention": decode_error,
    }
    encoder, vision_linear = Attention(), Curve()
    if vision is not None:
        vision_linear = _vision_linear(tables, vision, overheads)
        if not vision.whole:
            grid = tables.encoder(vision.heads, vision.head_dim)
            whole, errors["vision_attention"] = fit_attention(grid, 1.0, vision.full_layers)
            encoder = _per_visual_token(whole, vision.patches)
    return Fitted(
        step_s=overheads.step_s,
        sequence_s=overheads.sequence_s,
        linear=_linear(tables, language, tp, overheads),
        draws=_draws(tables, language, tp),
        chunk_attention=chunk,
        decode_attention=decode,
        vision_step_s=overheads.vision_step_s if vision else 0.0,
        vision_linear=vision_linear,
        vision_attention=encoder,
        vision_ranks=tp,
        errors=errors,
    )


def _linear(tables: Tables, language: Language, tp: int, overheads: Overheads) -> Curve:
    gemm, hidden, inner = tables.gemm, language.hidden, language.inner // tp
    width = language.head_dim * language.heads // tp
    keys = language.head_dim * max(1, language.kv_heads // tp)
    up = inner * (2 if language.is_gated else 1)
    reduce = tables.all_reduce(tp) if tp > 1 else Curve()
    passed = 8 * hidden + 2 * width + 4 * keys + up + inner
    """Numbers read and written per token and layer: two norms with the residual, rotation, the
    cache, the activation."""
    points = []
    for rows in gemm.rows:
        layer = gemm.at(rows, width + 2 * keys, hidden) + gemm.at(rows, hidden, width)
        layer += gemm.at(rows, up, hidden) + gemm.at(rows, hidden, inner)
        layer += 2.0 * reduce.at(rows * hidden) + _pass_s(tables, rows * passed, overheads)
        points.append((float(rows), language.layers * layer))
    return rising(points, TOLERANCE)


def _draws(tables: Tables, language: Language, tp: int) -> Curve:
    """The product with the vocabulary, as many rows as sequences."""
    gemm, hidden = tables.gemm, language.hidden
    rows = [rows for rows in gemm.rows if rows <= 4096]
    return rising(
        ((float(each), gemm.at(each, language.vocabulary // tp, hidden)) for each in rows),
        TOLERANCE,
    )


def _vision_linear(tables: Tables, vision: Vision, overheads: Overheads) -> Curve:
    """By visual tokens: products of all layers and the projector, and attention within windows or
    within each part of ``whole`` patches."""
    gemm, hidden, inner = tables.gemm, vision.hidden, vision.inner
    up = inner * (2 if vision.is_gated else 1)
    span = vision.whole or vision.window
    parts = span + vision.extra_patches if vision.whole else span
    inside = _column(tables.encoder(vision.heads, vision.head_dim), parts)
    inside_layers = vision.full_layers if vision.whole else vision.layers - vision.full_layers
    passed = 8 * hidden + 4 * hidden + up + inner
    points = []
    for rows in gemm.rows:
        tokens = rows / vision.patches
        inner_rows = rows * parts / span
        layer = gemm.at(inner_rows, 3 * hidden, hidden) + gemm.at(inner_rows, hidden, hidden)
        layer += gemm.at(inner_rows, up, hidden) + gemm.at(inner_rows, hidden, inner)
        layer += _pass_s(tables, inner_rows * passed, overheads)
        seconds = vision.layers * layer + inside_layers * inside.at(max(1.0, rows / span))
        seconds += gemm.at(rows, hidden, vision.patch_numbers)
        seconds += sum(gemm.at(tokens, out, into) for into, out in vision.projector)
        points.append((tokens, seconds))
    return rising(points, TOLERANCE)


def _pass_s(tables: Tables, numbers: float, overheads: Overheads) -> float:
    """Reading or writing so many BF16 numbers."""
    if not overheads.memory_share:
        return 0.0
    return numbers * BYTES / (overheads.memory_share * tables.device.memory_bytes_per_s)


def _prompts(tables: Tables, language: Language, tp: int) -> Grid:
    return tables.context(language.heads // tp, max(1, language.kv_heads // tp))


def _column(grid: Grid, length: int) -> Curve:
    """By batch, at one length: straight between the two measured lengths around it."""
    lengths = sorted({at for _, at in grid})
    high = next((at for at in lengths if at >= length), lengths[-1])
    low = max((at for at in lengths if at <= length), default=high)
    share = (length - low) / (high - low) if high > low else 0.0
    batches = sorted(batch for batch, at in grid if at == high and (batch, low) in grid)
    return Curve(
        tuple(map(float, batches)),
        tuple((1 - share) * grid[each, low] + share * grid[each, high] for each in batches),
    )


def fit_attention(grid: Grid, keys_share: float, layers: int) -> tuple[Attention, FitError]:
    """The ``Attention`` nearest to a table, all ``layers`` together. A row of a sequence attends
    to ``keys_share`` of it: half where causal, else all."""
    best: tuple[float, Attention, FitError] | None = None
    for tile in TILES:
        for extra in EXTRA_KEYS:
            found = _attention_by(grid, keys_share, Attention(tile, float(extra)))
            if best is None or found[1].mean < best[0]:
                best = (found[1].mean, *found)
    assert best is not None
    _, fitted, error = best
    curve = Curve(fitted.seconds.xs, tuple(layers * each for each in fitted.seconds.ys))
    return msgspec.structs.replace(fitted, seconds=curve), error


def _attention_by(grid: Grid, keys_share: float, like: Attention) -> tuple[Attention, FitError]:
    """The rising curve of seconds by work, and its error."""
    points = (
        (batch * like.work(length, _keys(length, keys_share)), seconds)
        for (batch, length), seconds in grid.items()
    )
    fitted = msgspec.structs.replace(like, seconds=rising(points, TOLERANCE))
    return fitted, fit_error(
        (fitted.seconds.at(batch * like.work(length, _keys(length, keys_share))), seconds)
        for (batch, length), seconds in grid.items()
    )


def _keys(length: int, share: float) -> float:
    return (length + 1) / 2.0 if share == 0.5 else float(length)


def _per_visual_token(attention: Attention, patches: int) -> Attention:
    """The same in visual tokens: as many fewer rows, and keys, as patches become one token."""
    xs = tuple(x / patches**2 for x in attention.seconds.xs)
    return Attention(
        max(1, attention.tile // patches),
        attention.extra_keys / patches,
        Curve(xs, attention.seconds.ys),
    )


def _decode_attention(
    tables: Tables, language: Language, tp: int
) -> tuple[DecodeAttention, FitError]:
    """A curve for each measured batch, and the error of going without the nearest one."""
    grid = tables.generation(language.heads // tp, max(1, language.kv_heads // tp))
    batches = sorted({batch for batch, _ in grid})
    curves = []
    for batch in batches:
        points = sorted((float(batch * at), grid[each, at]) for each, at in grid if each == batch)
        scaled = [(context, language.layers * seconds) for context, seconds in points]
        curves.append(rising(scaled, TOLERANCE))
    whole = DecodeAttention(tuple(batches), tuple(curves))
    pairs = []
    for before, after in pairwise(batches[::2]):
        batch = batches[batches.index(before) + 1]
        without = DecodeAttention(
            (before, after), tuple(curves[batches.index(each)] for each in (before, after))
        )
        for each, at in grid:
            if each == batch:
                fitted = without.at(batch, float(batch * at))
                pairs.append((fitted, language.layers * grid[each, at]))
    return whole, fit_error(pairs)

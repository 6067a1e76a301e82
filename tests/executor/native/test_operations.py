"""Our C: operations against twins and float64, whole steps against their parts."""

import itertools
import random

import pytest
import torch
from torch.nn import functional

from tests.executor.driver import Driver, executors, scene
from tests.executor.memory import BLOCK, GROUP, SIZE, Memory, spans_of
from triptych.core.errors import InvariantBroken
from triptych.core.plan import LanguagePlan
from triptych.core.request import Sampling
from triptych.executor.attention.plan import Span
from triptych.executor.models.vision_plan import Run
from triptych.executor.native import library
from triptych.executor.native_operations import Native
from triptych.executor.operations import PLAIN
from triptych.inputs.model_card import ImageGeometry

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 25)
"""Every tile, alone and beside others."""


@pytest.fixture(scope="module", params=[(), ("-DLANES=16",), ("-DLANES=8",)], ids=str)
def native(request, tmp_path_factory):
    """As this machine has it, and with vectors of either length, whatever registers there are."""
    if not request.param:
        return Native(library.load())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(library, "FLAGS", (*library.FLAGS, *request.param))
        return Native(library.load.__wrapped__())


def numbers(*shape, seed=0):
    torch.manual_seed(seed)
    return torch.randn(shape)


@pytest.mark.parametrize("width", [1, 15, 16, 17, 33, 64, 100, 131])
@pytest.mark.parametrize("inner", [1, 7, 64, 301])
def test_products(native, width, inner):
    weight, bias = numbers(width, inner, seed=1), numbers(width, seed=2)
    x = numbers(max(ROWS), inner, seed=3)
    for given in (None, bias):
        matrix = native.matrix(weight, given)
        wanted = x.double() @ weight.double().t() + (0 if given is None else given.double())
        for rows in ROWS:
            found = matrix(x[:rows])
            assert found.shape == (rows, width)
            error = (found.double() - wanted[:rows]).abs().max()
            assert error < 1e-6 * (1 + inner)
            assert found.equal(matrix(x[: max(ROWS)])[:rows]), "neighbours decide about bits"


def test_rows_of_a_table(native):
    weight = numbers(70, 9)
    tokens = torch.tensor([69, 0, 16, 15, 69])
    assert native.table(weight).rows(tokens).equal(weight[tokens])


@pytest.mark.parametrize("width", [1, 8, 19, 256])
def test_norms(native, width):
    x, delta, weight = numbers(5, width), numbers(5, width, seed=1), numbers(width, seed=2)
    whole = x.double() + delta.double()
    for given, kept in ((None, x.double()), (delta, whole)):
        held = x.clone()
        if given is None:
            found = native.norm(held, weight, 1e-6)
        else:
            found = native.add_norm(held, given, weight, 1e-6)
        wanted = functional.rms_norm(kept, (width,), weight.double(), 1e-6)
        assert (found - wanted).abs().max() < 1e-5
        assert (held - kept).abs().max() < 1e-6


def test_silu_over_the_whole_range(native):
    gate = torch.cat((torch.linspace(-120, 120, 4001), torch.tensor([-1e30, 1e30, 0.0, -0.0])))
    up = numbers(len(gate), seed=4)
    found = native.silu_mul(torch.cat((gate, up))[None])[0].double()
    wanted = functional.silu(gate.double()) * up
    assert ((found - wanted).abs() <= 1e-6 * wanted.abs() + 1e-8).all()


def test_angles_of_three_axes(native):
    positions = torch.randint(0, 3000, (3, 7))
    frequencies, axes = 1 / 10000 ** torch.linspace(0, 1, 12), torch.arange(12) % 3
    cosines, sines = native.angles(positions, frequencies, axes, torch.float32)
    angles = (positions.float().index_select(0, axes).t() * frequencies).double()
    assert (cosines - angles.cos()).abs().max() < 1e-6
    assert (sines - angles.sin()).abs().max() < 1e-6


@pytest.mark.parametrize(
    "sizes",
    [
        [(0, 1)],
        [(4, 5), (33, 34), (50, 51)],
        [(0, 9), (30, 47)],
        [(8, 9), (40, 41), (3, 20)],
        [(0, 300)],
        [(127, 128), (260, 261), (120, 149)],
    ],
)
@pytest.mark.parametrize("size", [16, 48, 64, 112, 128])
def test_attention_over_one_rank_and_layer(native, sizes, size):
    """Heads of every number of parts."""
    spans = spans_of(*sizes)
    memory = Memory(spans, size=size)
    found, store, _ = memory.attend(native, spans)
    wanted, expected, _ = memory.attend(PLAIN, spans)
    assert (found - wanted).abs().max() < 1e-5
    same = store.isnan() & expected.isnan()
    assert ((store - expected).abs()[~same] < 1e-5).all()
    assert same.any(), "there was nothing that must not be touched"


def test_bits_depend_neither_on_neighbours_nor_on_the_cut(native):
    one, short, long, chunk = spans_of((69, 70), (3, 4), (90, 91), (5, 40))
    memory = Memory([one, short, long, chunk])
    alone, _, _ = memory.attend(native, [one])
    for neighbours in ([one, long], [short, one], [short, one, long, chunk]):
        found, _, _ = memory.attend(native, neighbours)
        assert found[neighbours.index(one)].equal(alone[0])
    first, _, _ = memory.attend(native, [chunk])
    assert found[3:].equal(first)


def test_pieces_of_one_prompt_in_any_order(native):
    """A piece of one token comes before longer ones of the same sequence, which see less."""
    (whole,) = spans_of((0, 60))
    pieces = [Span(59, 60, whole.blocks), Span(30, 44, whole.blocks), Span(44, 59, whole.blocks)]
    memory = Memory([whole])
    found, store, _ = memory.attend(native, pieces)
    wanted, expected, _ = memory.attend(PLAIN, pieces)
    assert (found - wanted).abs().max() < 1e-5
    assert (store - expected)[~expected.isnan()].abs().max() < 1e-5


def test_a_table_that_is_too_short_is_a_bug(native):
    layout = Memory([]).layout
    for span in (Span(0, 17, (1,)), Span(3, 3, (1,))):
        with pytest.raises(InvariantBroken, match="does not cover"):
            native.planner(layout, "cpu", GROUP).plan([span])


def test_rows_of_another_width_are_a_bug(native):
    with pytest.raises(InvariantBroken, match="4 inputs was given 5"):
        native.matrix(numbers(3, 4), None)(numbers(2, 5))
    with pytest.raises(InvariantBroken, match="width"):
        native.norm(numbers(3, 4), numbers(5), 1e-6)
    with pytest.raises(InvariantBroken, match="width"):
        native.add_norm(numbers(3, 4), numbers(2, 4), numbers(4), 1e-6)


def test_numbers_that_do_not_lie_side_by_side_are_a_bug(native):
    with pytest.raises(InvariantBroken, match="cannot read"):
        native.norm(numbers(SIZE, 4).t(), numbers(SIZE), 1e-6)
    with pytest.raises(InvariantBroken, match="cannot read"):
        native.norm(numbers(4, SIZE).double(), numbers(SIZE), 1e-6)


@pytest.mark.parametrize("runs", [[(0, 1, 1)], [(0, 3, 7), (21, 1, 50)], [(0, 2, 100)]], ids=str)
@pytest.mark.parametrize("size", [2, 16, 30, 72])
def test_attention_within_spans(native, runs, size):
    """Spans shorter and longer than what is computed together; heads of every width."""
    runs = [Run(*run) for run in runs]
    rows, heads = sum(run.spans * run.length for run in runs), 3
    qkv = numbers(rows, 3, heads, size)
    angles = numbers(rows, size // 2, seed=1)
    rotary = angles.cos(), angles.sin()
    device = torch.device("cpu")
    found = native.attend_spans(qkv.clone(), rotary, native.plan_spans(runs, device))
    wanted = PLAIN.attend_spans(
        qkv.double(), tuple(part.double() for part in rotary), PLAIN.plan_spans(runs, device)
    )
    assert found.shape == (rows, heads * size)
    assert (found - wanted).abs().max() < 1e-5


def test_a_span_does_not_see_its_neighbours(native):
    qkv, angles = numbers(90, 3, 2, 16), numbers(90, 8, seed=1)
    device, rotary = torch.device("cpu"), (angles.cos(), angles.sin())
    both = native.plan_spans([Run(0, 1, 37), Run(37, 1, 53)], device)
    one = native.plan_spans([Run(0, 1, 53)], device)
    found = native.attend_spans(qkv.clone(), rotary, both)[37:]
    alone = native.attend_spans(qkv[37:].clone(), tuple(part[37:] for part in rotary), one)
    assert found.equal(alone)


def test_scores_of_any_size_are_weighed(native):
    """Each row sees itself best, by far: no weight is lost or infinite."""
    qkv = torch.zeros(60, 3, 1, 64)
    qkv[:, 0, 0, :60] = qkv[:, 1, 0, :60] = 60 * torch.eye(60)
    qkv[:, 2] = numbers(60, 1, 64)
    still = torch.ones(60, 32), torch.zeros(60, 32)
    plan = native.plan_spans([Run(0, 1, 60)], torch.device("cpu"))
    assert native.attend_spans(qkv, still, plan).equal(qkv[:, 2].flatten(1))


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("merge", [1, 2])
def test_patches_are_those_of_the_processor(native, frames, merge):
    geometry = ImageGeometry(7, merge, frames, 0, 10**6, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    shape = (3 * geometry.factor, 5 * geometry.factor, 3)
    image = torch.randint(0, 256, shape, dtype=torch.uint8)
    assert native.patches(image, geometry).equal(PLAIN.patches(image, geometry))


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen2_vl"])
def test_a_picture_and_the_answer(kind, folders):
    """Towers and decoders of both families."""
    one, rows, logits, tokens = scene(random.Random(1), [3, (2, 3), 2], 690), [], [], []
    for name in ("plain", "native"):
        whole = executors(folders[kind], kernels=name)
        assert (whole.language._model._graphs is not None) == (name == "native")
        driver = Driver(whole)
        sequence = driver.add(one)
        rows.append(driver.rows(sequence))
        with torch.inference_mode():
            plan = LanguagePlan((driver.add(one).segment(10**6),))
            logits.append(whole.language._model.logits(plan))
        tokens.append(driver.generate(sequence, 7, 12))
        whole.close()
    assert (rows[0] - rows[1]).abs().max() < 1e-4
    assert (logits[0] - logits[1]).abs().max() < 1e-4
    assert tokens[0] == tokens[1]


def test_a_recorded_step_is_its_operations_to_the_bit(folders):
    """Decodes of one to eleven sequences, through programs and without."""
    found = []
    for is_recorded in (True, False):
        whole = executors(folders["qwen2_5_vl"], kernels="native")
        model, driver = whole.language._model, Driver(whole)
        model._graphs = model._graphs if is_recorded else None
        driver.runs.fill_(7.0)  # what an earlier sequence left: blocks that are begun are cleared
        texts = [scene(random.Random(n), [3 + 4 * n], 690) for n in range(11)]
        sequences = [driver.add(text, Sampling()) for text in texts]
        driver.step(*((one, 10**6) for one in sequences))
        for count in itertools.chain(range(1, 12), range(11, 0, -1)):
            driver.step(*((one, 1) for one in sequences[:count]))
        found.append(([one.tokens for one in sequences], driver.runs.clone()))
        assert is_recorded == (model._graphs is not None and model._graphs._room == 16)
        whole.close()
    assert found[0][0] == found[1][0]
    assert found[0][1].equal(found[1][1])
    assert max(map(len, found[0][0])) > BLOCK, "no sequence came to a second block"

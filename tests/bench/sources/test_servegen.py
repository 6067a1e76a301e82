"""ServeGen's clients: a drawn folder for the rules, the published one for its statistics."""

import math

import msgspec
import pytest

from bench.arrivals import Gamma, Poisson, Weibull
from bench.sources.registry import workload
from bench.sources.servegen import DAY_S, WINDOW_S, ServeGen, Settings, read
from tests.bench.sources.traces import TRACES, drawn
from triptych.core.errors import ConfigError

FOLDER = TRACES / "servegen_mm_image"
published = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no trace at {FOLDER}")

SILENT = dict.fromkeys(("text_tokens", "image_tokens", "image_count", "output_tokens"), "{0: 1.0}")
BUSY = {
    "text_tokens": "{10: 0.5, 30: 0.5}",
    "image_tokens": "{64: 1.0}",
    "image_count": "{0: 0.25, 1: 0.25, 2: 0.5}",
    "output_tokens": "{5: 0.9, 500: 0.1}",
}
LATE = BUSY | {"text_tokens": "{7000: 1.0}"}


def write(folder, number, lines, windows):
    folder.mkdir(parents=True, exist_ok=True)
    steps = [f"{600 * index},{line}" for index, line in enumerate(lines)]
    (folder / f"chunk-{number}-trace.csv").write_text("\n".join(steps) + "\n")
    table = {f"{21_600 * index}": window for index, window in enumerate(windows)}
    (folder / f"chunk-{number}-dataset.json").write_bytes(msgspec.json.encode(table))


@pytest.fixture
def folder(tmp_path):
    """Client 0 is there all day, twice as often from 12 h on; client 2 sleeps until 6 h."""
    where = tmp_path / "data" / "mm-image"
    steady = ["2,1.0,Gamma,1.0,0.5"] * 72 + ["4,2.0,Gamma,0.25,1.0"] * 72
    write(where, 0, steady, [BUSY, BUSY, LATE, BUSY])
    late = ["0,0,,0,0"] * 36 + ["1,0.5,Weibull,2.1,1.13"] * 108
    write(where, 2, late, [SILENT, BUSY, BUSY, BUSY])
    return tmp_path


def test_clients_are_read_in_order(folder):
    clients = read(folder)
    assert [client.name for client in clients] == ["client-0", "client-2"]
    assert clients[0].gaps[0] == Gamma(1.0)
    assert clients[1].gaps[:37:36] == (Poisson(), Weibull(2.1))
    assert [client.rates.mean(DAY_S) for client in clients] == [3.0, 0.75]


def test_own_rates_follow_the_day(folder):
    load = ServeGen(Settings(f"{folder}", is_tenanted=True))
    for start_s, expected in ((0.0, {"client-0": 2}), (50_000.0, {"client-0": 4, "client-2": 1})):
        settings = msgspec.structs.replace(load.settings, start_s=start_s)
        found = drawn(ServeGen(settings), None, 2000.0, 1)
        counts = {name: sum(one.tenant == name for one in found) for name in expected}
        assert sum(counts.values()) == len(found)
        for name, rate in expected.items():
            assert abs(counts[name] - rate * 2000) < 4 * 2 * math.sqrt(rate * 2000)


def test_a_rate_scales_all_clients_alike(folder):
    settings = Settings(f"{folder}", start_s=50_000.0, is_tenanted=True)
    found = drawn(ServeGen(settings), 20.0, 1000.0, 3)
    assert abs(len(found) - 20_000) < 4 * 2 * math.sqrt(20_000)
    share = sum(one.tenant == "client-2" for one in found) / len(found)
    assert abs(share - 1 / 5) < 4 * 2 / math.sqrt(20_000)


def test_a_window_has_its_own_distributions(folder):
    """Client 0 writes 7,000 tokens between 12 h and 18 h only, and the day begins anew."""
    settings = Settings(f"{folder}", start_s=2 * WINDOW_S - 300, is_tenanted=True)
    found = [one for one in drawn(ServeGen(settings), None, 600.0, 1) if one.tenant == "client-0"]
    assert {one.num_text == 7000 for one in found if one.at_s < 300} == {False}
    assert {one.num_text for one in found if one.at_s >= 300} == {7000}
    settings = Settings(f"{folder}", start_s=DAY_S - 300)
    night = drawn(ServeGen(settings), None, 600.0, 1)
    assert 0 < sum(one.at_s >= 300 for one in night) < sum(one.at_s < 300 for one in night)


def test_a_request_is_the_same_at_any_rate(folder):
    """Common random numbers: what is compared at two rates differs in time alone."""
    load = ServeGen(Settings(f"{folder}", is_tenanted=True, start_s=50_000.0))
    slow, fast = ([*load.arrivals(rate, 200.0, 5)] for rate in (1.0, 5.0))
    for name in ("client-0", "client-2"):
        few = [one.parts for one in slow if one.tenant == name]
        many = [one.parts for one in fast if one.tenant == name]
        assert 10 < len(few) < len(many)
        assert many[: len(few)] == few


def test_pictures_come_again_within_a_client(folder):
    settings = Settings(f"{folder}", start_s=50_000.0, repeat=0.5, recent=8, is_tenanted=True)
    found = drawn(ServeGen(settings), None, 1000.0, 1)
    images = [image for one in found for image in one.images]
    assert abs(len(set(images)) / len(images) - 0.5) < 4 * 0.5 / math.sqrt(len(images))
    owners = {(image, one.tenant) for one in found for image in one.images}
    assert len(owners) == len(set(images))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda where: (where / "chunk-0-dataset.json").unlink(),
        lambda where: (where / "chunk-0-dataset.json").write_text("{}"),
        lambda where: (where / "chunk-0-trace.csv").write_text("0,1\n"),
        lambda where: (where / "chunk-0-trace.csv").write_text("0,many,1,Gamma,1,1\n"),
        lambda where: write(where, 0, ["1,1,Gamma,1,1"] * 144, [BUSY | {"text_tokens": "{}"}] * 4),
        lambda where: write(where, 0, ["-1,1,Gamma,1,1"] * 144, [BUSY] * 4),
        lambda where: write(where, 0, ["1,1,Gamma,0,1"] * 144, [BUSY] * 4),
    ],
)
def test_a_spoilt_folder_is_refused(folder, spoil):
    spoil(folder / "data" / "mm-image")
    with pytest.raises(ConfigError, match="servegen: client 0: "):
        read(folder)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no chunk"):
        workload(f"servegen:{tmp_path}")


def weighted(clients, weigh):
    """Means of (images, share without, tokens of a picture, text, output), where ``weigh`` says
    how much each of a client's four windows counts."""
    total, sums = 0.0, [0.0] * 5
    for client in clients:
        for window, shape in enumerate(client.shapes):
            weight = weigh(client, window)
            none = sum(shape.images.at(index / 5000) == 0 for index in range(5000)) / 5000
            means = (shape.images.mean, none, shape.tokens.mean, shape.text.mean, shape.output.mean)
            sums = [old + weight * new for old, new in zip(sums, means, strict=True)]
            total += weight
    return [each / total for each in sums]


@published
def test_the_published_statistics_are_those_of_all_windows_silent_ones_too():
    """Rate-weighted means as published: 9.47 requests/s, 1.51 pictures, 7.0 % without, 592 tokens
    a picture, 568 of text, 127 of output. They count windows in which a client was silent, whose
    distributions are {0: 1.0}; requests that arrive never come from these."""
    clients = read(FOLDER)
    assert len(clients) == 35
    assert sum(client.rates.mean(DAY_S) for client in clients) == pytest.approx(9.47, abs=0.01)
    means = weighted(clients, lambda client, _: client.rates.mean(DAY_S))
    assert means == pytest.approx([1.51, 0.070, 592, 568, 127], rel=0.005)
    means = weighted(clients, lambda client, window: client.rates.mean(WINDOW_S, window * WINDOW_S))
    assert means == pytest.approx([1.59, 0.0057, 650, 572, 130], rel=0.005)


def squared_cv(process):
    """Of gaps."""
    if isinstance(process, Gamma):
        return 1 / process.shape
    k = getattr(process, "shape", 1.0)
    return math.gamma(1 + 2 / k) / math.gamma(1 + 1 / k) ** 2 - 1


def expected(clients, rate, of):
    """Mean of ``of(shape)``, a list of equally likely values, over the requests of a day, and its
    standard error: requests differ, and how many each client sends does too (cv² n, roughly)."""
    own = sum(client.rates.mean(DAY_S) for client in clients)
    parts = []
    for client in clients:
        for window, shape in enumerate(client.shapes):
            values = of(shape)
            mean = sum(values) / len(values)
            variance = sum((value - mean) ** 2 for value in values) / len(values)
            pieces = list(client.pieces(window * WINDOW_S, WINDOW_S, rate / own))
            counts = [(piece.end_s - piece.start_s) * piece.rate for piece in pieces]
            wild = sum(
                count * squared_cv(piece.gaps) for count, piece in zip(counts, pieces, strict=True)
            )
            parts.append((sum(counts), wild, mean, variance))
    total = sum(count for count, *_ in parts)
    mean = sum(count * each for count, _, each, _ in parts) / total
    square = sum(n * variance + wild * (each - mean) ** 2 for n, wild, each, variance in parts)
    return mean, math.sqrt(square) / total


RANKS = [(index + 0.5) / 2000 for index in range(2000)]


@published
@pytest.mark.parametrize("coupling", ["independent", "comonotone"])
def test_a_drawn_day_has_the_statistics_of_the_clients(coupling):
    """Whatever the coupling, every single distribution is the clients'."""
    load = ServeGen(Settings(f"{FOLDER}", coupling=coupling))
    found = list(load.arrivals(0.4, DAY_S, 11))
    columns = [
        (lambda shape: [shape.images.at(rank) for rank in RANKS], lambda one: len(one.images)),
        (lambda shape: [shape.images.at(rank) == 0 for rank in RANKS], lambda one: not one.images),
        (lambda shape: [shape.text.at(rank) for rank in RANKS], lambda one: one.num_text),
        (lambda shape: [shape.output.at(rank) for rank in RANKS], lambda one: one.num_output),
    ]
    for of, measure in columns:
        mean, error = expected(load.clients, 0.4, of)
        assert abs(sum(map(measure, found)) / len(found) - mean) < 4 * error
        assert error < 0.06 * mean + 1e-3, "or the line above says nothing"
    sizes = [image.num_tokens for one in found for image in one.images]
    assert max(sizes) <= 1280 * 1.03


@published
def test_coupling_spreads_the_work_of_a_request():
    """Of equal means, comonotone requests have the larger second moment."""
    seconds = {}
    for coupling in ("independent", "input", "comonotone"):
        load = ServeGen(Settings(f"{FOLDER}", coupling=coupling))
        prompts = [one.num_prompt for one in load.arrivals(10.0, 1800.0, 2)]
        seconds[coupling] = sum(prompt * prompt for prompt in prompts) / len(prompts)
    assert seconds["independent"] < 0.8 * seconds["input"]
    assert seconds["input"] == pytest.approx(seconds["comonotone"], rel=0.2)

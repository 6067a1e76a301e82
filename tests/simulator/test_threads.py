"""What surrounds the steps: a scenario that reads it from a profile's card, times known by hand."""

import msgspec
import pytest

from bench.workload import Arrival, Image, Text
from scheduler.fit import Coefficients
from simulator.costs.card import Card, from_file, to_json
from simulator.costs.overheads import Handling, Overheads
from simulator.costs.sizes import Sizes
from simulator.run import simulate
from simulator.scenario import made
from triptych.core.errors import ConfigError

STEPS = Coefficients(
    step_s=0.010, sequence_s=0.0, pair_s=0.0, context_s=0.0, vision_step_s=0.020,
    visual_token_s=0.0, square_s=0.0, token_s=(0.0,),
)  # fmt: skip
"""Any language step takes 10 ms, any vision step 20 ms."""
AROUND = Overheads(
    client=Handling(request_s=0.001, token_s=0.0005),
    router=Handling(request_s=0.002, picture_s=0.003, job_s=0.0004, batch_s=0.0002, token_s=0.0001),
    instance=Handling(job_s=0.0006),
    step_s=0.0007,
    vision_step_s=0.0008,
    turn_s=0.0005,
    turn_wait_s=0.0003,
    hop_s=0.0001,
    picture_s=0.004,
    megapixel_s=1.0,
    transfer_s=0.002,
    speeds=(1.0, 2.0),
)
SIZES = Sizes(
    num_devices=1, device_bytes=1 << 33, language_bytes=1 << 20, vision_bytes=1 << 20,
    kv_token_bytes=2048, visual_token_bytes=768,
)  # fmt: skip


@pytest.fixture
def card(tmp_path):
    """A profile's file, written as `triptych profile` does."""

    def write(overheads):
        path = tmp_path / "card.json"
        whole = Card(source="by hand", sizes=SIZES, costs=STEPS.fitted(), overheads=overheads)
        path.write_bytes(to_json(whole))
        assert from_file(path) == whole
        return path

    return write


def rows_of(path, arrivals, topology="EPD1", *, more=(), on_host=None, **machines):
    scenario = made(
        {
            "name": "test",
            "costs": f"file:{path}",
            "workload": "synthetic:servegen",
            "rates": [1.0],
            "duration_s": 1.0,
            "systems": [{"name": topology, "topology": topology}],
            "set": ["engine.stream_interval=1", "cache.kv_blocks=4096", *more],
            "machines": {"start_s": 0.0, **machines},
        },
        "test",
    )
    ((_, plan),) = scenario.plans()
    return simulate(plan, arrivals, on_host=on_host).rows


def text(at_s=0.0, seed=1, num_output=3):
    return Arrival(at_s, (Text(seed, 20),), num_output)


FIRST_S = (
    0.001 + 0.0001 + 0.002  # the client's, its way, the router's
    + 0.0004 + 0.0001 + 0.0006  # a job sent, its way, taken
    + 0.010 + 0.0003 + 0.0005  # the step, a thread wakes, it is taken in
    + 0.0001 + 0.0002 + 0.0001 + 0.0001 + 0.0005  # a message, its way, the token's, the client's
)  # fmt: skip


@pytest.mark.parametrize("cores", [None, 0, 2, 64])
def test_a_request_alone_takes_the_sum_of_all_on_any_number_of_cores(card, cores):
    machines = {} if cores is None else {"cores": cores}
    (row,) = rows_of(card(AROUND), [text(num_output=4)], **machines)
    first, second, third, fourth = row.token_times_s
    assert first == pytest.approx(FIRST_S)
    assert second - first == pytest.approx(0.0107), "a step, and what is around it"
    wait_s = 0.0 if cores == 0 else 0.0007  # a step stands still while its loop works
    assert third - second == pytest.approx(0.010 + wait_s), "it was computed meanwhile"
    last_s = 0.0003 + 0.0005 - 0.0007  # a thread wakes and a turn, where the others are told
    assert fourth - third == pytest.approx(0.010 + wait_s + last_s)


@pytest.mark.parametrize(("ahead", "gap_s"), [(1, 0.014), (2, 0.012), (16, 0.0103)])
def test_the_loop_takes_in_the_last_step_of_a_run_before_the_next_begins(card, ahead, gap_s):
    around = msgspec.structs.replace(AROUND, step_s=0.0037, turn_s=0.0037, frees_lock=True)
    (row,) = rows_of(card(around), [text(num_output=34)], more=[f"engine.steps_ahead={ahead}"])
    times = row.token_times_s
    paces = (times[-1] - times[1]) / 32
    assert paces == pytest.approx(gap_s, rel=0.03)


@pytest.mark.parametrize(
    ("speeds", "frees_lock", "gap_s"),
    [((1.0, 2.0), False, 0.0127), ((1.0, 2.0), True, 0.010), ((), False, 0.010)],
)
def test_a_step_stands_still_while_the_loop_of_its_instance_tells_a_token(
    card, speeds, frees_lock, gap_s
):
    """Where steps run on processors and need the interpreter to go on."""
    telling = msgspec.structs.replace(AROUND.instance, token_s=0.002)
    around = msgspec.structs.replace(AROUND, instance=telling, speeds=speeds, frees_lock=frees_lock)
    (row,) = rows_of(card(around), [text(num_output=4)])
    _, second, third, _ = row.token_times_s
    assert third - second == pytest.approx(gap_s)


def test_a_picture_is_read_decoded_and_encoded(card):
    picture = Image(7, 280, 280)
    arrival = Arrival(0.0, (Text(1, 20), picture, Text(2, 20)), 1)
    (row,) = rows_of(card(msgspec.structs.replace(AROUND, speeds=())), [arrival], cores=0)
    chain = (
        0.001 + 0.0001 + 0.002 + 0.003  # the door
        + 0.0004 + 0.0001 + 0.0006  # the picture's job
        + 0.004 + 0.0784  # decoded
        + 0.020 + 0.0003 + 0.0008  # encoded
        + 0.002  # the embedding's offer is taken, even within one instance
        + 0.010 + 0.0003 + 0.0005  # the rest of the prompt
        + 0.0001 + 0.0002 + 0.0001 + 0.0001 + 0.0005
    )  # fmt: skip
    assert row.token_times_s[0] == pytest.approx(chain)


def test_tokens_wake_a_client_that_does_nothing_else(card):
    around = msgspec.structs.replace(
        AROUND, client=msgspec.structs.replace(AROUND.client, batch_s=0.003)
    )
    alone = rows_of(card(around), [text(num_output=1)], cores=0)
    assert alone[0].token_times_s[0] == pytest.approx(FIRST_S + 0.003)
    both = [text(num_output=1), text(seed=2, num_output=1)]
    firsts = [
        sorted(row.token_times_s[0] for row in rows_of(card(each), both, cores=0))
        for each in (AROUND, around)
    ]
    plain, woken = firsts
    assert woken[0] - plain[0] == pytest.approx(0.003)
    assert woken[1] - woken[0] == pytest.approx(plain[1] - plain[0], abs=0.0005)


@pytest.mark.parametrize("who", ["client", "router", "instance"])
def test_what_is_done_behind_an_answer_keeps_only_the_next_one_waiting(card, who):
    busy = msgspec.structs.replace(getattr(AROUND, who), ended_s=0.03)
    around = msgspec.structs.replace(AROUND, **{who: busy})
    (before,) = rows_of(card(AROUND), [text(num_output=2)], cores=0)
    end_s = before.token_times_s[-1]
    next_one = text(end_s + 1e-6, seed=9, num_output=2)
    plain = rows_of(card(AROUND), [text(num_output=2), next_one], cores=0)
    rows = rows_of(card(around), [text(num_output=2), next_one], cores=0)
    assert rows[0].token_times_s == pytest.approx(before.token_times_s)
    # On its way to whoever is busy the next one is a few milliseconds.
    assert 0.024 < rows[1].token_times_s[0] - plain[1].token_times_s[0] <= 0.0301


def test_a_run_ends_when_all_is_done_that_nobody_waited_for(card):
    def worked_s(around):
        hosts = []
        rows_of(card(around), [text(num_output=2)], on_host=hosts.append, cores=2)
        return hosts[0].threads.cores.work_s

    busy = {
        who: msgspec.structs.replace(getattr(AROUND, who), ended_s=0.03)
        for who in ("client", "router", "instance")
    }
    around = msgspec.structs.replace(AROUND, **busy)
    assert worked_s(around) - worked_s(AROUND) == pytest.approx(0.09, abs=0.001)


def test_one_core_is_slower_than_two_and_two_than_many(card):
    arrivals = [text(0.001 * number, 10 + number, 8) for number in range(12)]
    path = card(AROUND)
    ends = [
        [row.token_times_s[-1] for row in rows_of(path, arrivals, "E1,P1,D1", cores=cores)]
        for cores in (1, 2, 0)
    ]
    assert max(ends[0]) > max(ends[1]) > max(ends[2])
    assert ends[1] == [
        row.token_times_s[-1] for row in rows_of(path, arrivals, "E1,P1,D1", cores=2)
    ]


def test_cores_need_a_profile(card):
    with pytest.raises(ConfigError, match=r"machines\.cores"):
        rows_of(card(None), [text()], cores=2)
    (row,) = rows_of(card(None), [text()], cores=0, hop_s=0.0)
    assert row.token_times_s == pytest.approx((0.010, 0.020, 0.030))


SLICED = msgspec.structs.replace(
    AROUND, slice_s=0.0014, pictures_nice=10, step_wait_s=0.0004, step_token_wait_s=0.0002,
    turn_token_s=0.0001, turn_prompt_s=0.0003, encodes_alone=True,
)  # fmt: skip


@pytest.mark.parametrize("frees_lock", [False, True])
@pytest.mark.parametrize("topology", ["EPD1", "E1,P1,D1"])
@pytest.mark.parametrize("cores", [1, 2, 8])
def test_cores_in_slices_serve_everybody_and_the_same_again(card, topology, cores, frees_lock):
    path = card(msgspec.structs.replace(SLICED, frees_lock=frees_lock))
    picture = Image(7, 112, 112)
    arrivals = [
        Arrival(
            0.004 * n, (Text(n, 20), *([picture] if n % 3 == 0 else ()), Text(99, 5)), 1 + n % 5
        )
        for n in range(12)
    ]
    rows = rows_of(path, arrivals, topology, cores=cores)
    assert [(row.status, len(row.token_times_s)) for row in rows] == [
        ("ok", 1 + n % 5) for n in range(12)
    ]
    assert rows == rows_of(path, arrivals, topology, cores=cores)


@pytest.mark.parametrize(("cores", "slice_s"), [(1, 0.0007), (2, 0.0014), (8, 0.0028)])
def test_slices_grow_with_the_cores_that_a_scenario_asks_for(card, cores, slice_s):
    hosts = []
    rows_of(card(SLICED), [text()], on_host=hosts.append, cores=cores)
    assert hosts[0].hardware.overheads.slice_s == pytest.approx(slice_s)


def test_steps_of_a_run_wait_and_turns_take_more_with_more_in_them(card):
    """Of requests alone slices are nothing; what passes between steps is."""
    (row,) = rows_of(card(msgspec.structs.replace(SLICED, frees_lock=True)), [text(num_output=4)])
    first, second, third, _ = row.token_times_s
    assert first == pytest.approx(FIRST_S + 0.0001 + 0.0003, abs=2e-5)
    assert third - second == pytest.approx(0.010 + 0.0004 + 0.0002, abs=2e-5)


def test_a_picture_beside_a_prompt_yields(card):
    """On one core: a prompt's step comes first though a picture's began before."""
    long = msgspec.structs.replace(SLICED, frees_lock=True, picture_s=0.0, megapixel_s=0.0)
    arrivals = [Arrival(0.0, (Text(1, 20), Image(7, 112, 112)), 1), text(0.012, 5, 1)]
    nice, equal = (
        rows_of(card(msgspec.structs.replace(long, pictures_nice=number)), arrivals, cores=1)
        for number in (10, 0)
    )
    assert nice[1].token_times_s[0] < equal[1].token_times_s[0]


def test_a_card_without_turns_is_too_old(card):
    path = card(AROUND)
    old = msgspec.structs.replace(AROUND, turn_s=0.0, turn_wait_s=0.0)
    whole = Card(source="by hand", sizes=SIZES, costs=STEPS.fitted(), overheads=old)
    path.write_bytes(to_json(whole))
    with pytest.raises(ConfigError, match="older profile"):
        from_file(path)

"""The comparison's order, and its written results, with a system that answers at once."""

import msgspec
import pytest

from bench import __main__ as command
from bench import plots, record
from bench.client import Outcome
from bench.compare import Plan, compare
from bench.systems import SystemFailed


class Instant:
    """Answers every ask after the same time; keeps what it was told."""

    def __init__(self, name, log, ttft_s=0.1):
        self.name, self._log, self._ttft_s = name, log, ttft_s
        self.runs = []

    async def start(self):
        self._log.append(f"start {self.name}")

    async def run(self, run, on_end):
        self.runs.append(run)
        outcomes = []
        for ask, arrival_s in zip(run.asks, run.arrivals_s, strict=True):
            first_s = arrival_s + self._ttft_s
            times = tuple(first_s + 0.01 * index for index in range(ask.max_tokens))
            outcomes.append(Outcome(arrival_s, times, times[-1], "ok"))
            on_end(outcomes[-1])
        return tuple(outcomes)

    async def stop(self):
        self._log.append(f"stop {self.name}")


async def rows_of(log, said):
    systems = [Instant("EPD1", log), Instant("E1,P1,D1", log, 0.2)]
    rows = await compare(
        systems, Plan((1.0, 4.0), 2.0, 2, seed=7, warmup=1, settle_s=0.0), said.append
    )
    return systems, rows


async def test_systems_take_turns_and_see_the_same_requests():
    log, said = [], []
    systems, rows = await rows_of(log, said)
    turn = ["start EPD1", "stop EPD1", "start E1,P1,D1", "stop E1,P1,D1"]
    assert log == turn * 2
    assert systems[0].runs == systems[1].runs
    measured = [run for run in systems[0].runs if len(run.asks) > 1]
    assert measured[0] != measured[2], "another repetition asks other questions"
    assert [(row.system, row.rate, len(row.runs)) for row in rows] == [
        ("EPD1", 1.0, 2), ("E1,P1,D1", 1.0, 2), ("EPD1", 4.0, 2), ("E1,P1,D1", 4.0, 2),
    ]  # fmt: skip
    assert any("min left" in line for line in said)


async def test_a_system_that_does_not_answer_is_not_measured():
    class Silent(Instant):
        async def run(self, run, on_end):
            return tuple(Outcome(0.0, (), 1.0, "refused", "HTTP 503") for _ in run.asks)

    log = []
    with pytest.raises(SystemFailed, match="HTTP 503"):
        await compare([Silent("EPD1", log)], Plan((1.0,), 1.0, 1, 7), lambda _: None)
    assert log == ["start EPD1", "stop EPD1"], "stopped all the same"


async def test_results_are_written_with_what_is_needed_to_read_them(tmp_path):
    _, rows = await rows_of([], [])
    found = {"settings": [], "plan": Plan((1.0, 4.0), 2.0, 2, 7), "rows": rows}
    data, picture = record.write(tmp_path, "", 0.1, found)
    plots.draw(rows, picture, "a title")
    document = msgspec.json.decode(data.read_bytes())
    assert {"machine", "packages", "plan", "rows", "settings"} <= document.keys()
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_without_cuda_the_gpu_run_says_why_it_does_nothing(capsys, monkeypatch):
    monkeypatch.setattr(command, "has_cuda", lambda: False)
    assert command.main(["--device", "cuda"]) == 0
    assert capsys.readouterr().out.startswith("skipped: ")

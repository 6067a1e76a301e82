"""The measurement of the simulator's own speed."""

import gc

import pytest

from simulator.garbage import seldom_collected
from simulator.speed import Speed, main


def test_a_speed_is_per_request_and_processor_second() -> None:
    speed = Speed(num_requests=200, simulated_s=60.0, start_s=1.0, cpu_s=0.5)
    assert (speed.request_ms, speed.requests_per_s, speed.ratio) == (2.5, 400.0, 120.0)


def test_the_command_says_all_three(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--instances", "3", "--rate", "2", "--seconds", "2"])
    said = capsys.readouterr().out
    assert "ms/request" in said
    assert "requests/s" in said
    assert "simulated s a processor second" in said


def test_the_collector_is_as_before_behind_a_run() -> None:
    before = gc.get_threshold()
    with pytest.raises(ValueError, match="ended"), seldom_collected():
        assert gc.get_threshold() != before
        raise ValueError("ended")
    assert gc.get_threshold() == before

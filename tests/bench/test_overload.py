"""What is left at ten times the load, from rows alone."""

import pytest

from bench.overload import overload, peak_of
from bench.run import Row, Run


def run(rate: float, on_time: int, late: int = 0, refused: int = 0, refusal_s: float = 0.0) -> Run:
    def row(number: int, status: str, first_s: float) -> Row:
        times = () if status == "refused" else (1.0 + first_s,)
        return Row(f"r{number}", 1.0, "interactive", 2.0, None, 0, 0, 10, status, 1.0 + first_s,
                   token_times_s=times)  # fmt: skip

    rows = [row(number, "ok", 0.5) for number in range(on_time)]
    rows += [row(100 + number, "ok", 5.0) for number in range(late)]
    rows += [row(200 + number, "refused", refusal_s) for number in range(refused)]
    return Run("s", "w", rate, 1, 1, 10.0, tuple(rows))


def test_the_peak_is_of_what_was_attained_not_of_what_was_offered():
    assert peak_of([run(1.0, 10), run(2.0, 18, late=2), run(4.0, 5, late=35)]).rate == 2.0


def test_goodput_in_overload_is_compared_with_the_peak():
    found = overload([run(2.0, 20)], run(20.0, 19, late=1, refused=180, refusal_s=0.01))
    assert found.kept == pytest.approx(0.95)
    assert found.peak == pytest.approx(2.0) and found.rate == 20.0
    assert found.share_refused == pytest.approx(0.9)
    assert found.refusal_p99_s == pytest.approx(0.01)


def test_nothing_attained_keeps_nothing():
    found = overload([run(2.0, 0, late=20)], run(20.0, 0, late=20))
    assert found.kept == 0.0 and found.refusal_p99_s == 0.0

"""The machine's tempo: by beats that are given, and by real ones."""

import asyncio

import pytest

from simulator.profile import tempo
from simulator.profile.tempo import Tempo, beat


def beats(*seconds):
    """Each look at a machine that is this fast: one beat that wakes it, and ``BEATS``."""
    each = (second for second in seconds for _ in range(tempo.BEATS + 1))
    return lambda: next(each)


def test_now_is_compared_with_what_is_usual(monkeypatch):
    monkeypatch.setattr(tempo, "REST_S", 0.0)
    usual = [0.001] * (tempo.LOOKS // 2 + 1) + [0.009] * (tempo.LOOKS // 2 - 1)
    here = Tempo(beat=beats(*usual, 0.001, 0.0015, 0.0008))
    assert here.usual_s == 0.001
    assert [here.now() for _ in range(3)] == pytest.approx([1.0, 1.5, 0.8])


def test_one_long_beat_is_no_tempo():
    some = iter([0.001, 0.001, 0.050, 0.001])
    assert Tempo(0.001, lambda: next(some)).now() == 1.0


async def test_it_is_looked_at_as_long_as_something_goes_on(monkeypatch):
    monkeypatch.setattr(tempo, "EVERY_S", 0.001)
    here = Tempo(0.001, beats(*(0.001 * n for n in range(1, 10_000))))
    async with here.beside() as looks:
        assert looks == [1.0]
        async with asyncio.timeout(10):
            while len(looks) < 4:
                await asyncio.sleep(0.001)
    count = len(looks)
    assert looks[:4] == pytest.approx([1.0, 2.0, 3.0, 4.0])
    await asyncio.sleep(0.01)
    assert len(looks) == count


def test_a_beat_takes_time_of_this_thread():
    assert 0.0 < beat() < 1.0


def test_what_was_usual_at_first_is_corrected_by_what_was_usual_all_the_time(monkeypatch):
    monkeypatch.setattr(tempo, "REST_S", 0.0)
    later = [0.001] * (2 * tempo.LOOKS)
    here = Tempo(beat=beats(*[0.002] * tempo.LOOKS, *later))
    assert here.usual_s == 0.002
    took_s = [0.030 / here.now() for _ in later]  # of work that took 30 ms at that tempo
    times = here.correction()
    assert here.usual_s == 0.001
    assert took_s[0] * times == pytest.approx(0.030)

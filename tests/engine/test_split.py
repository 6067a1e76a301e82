"""What part of a device a step of pictures is given, and what is told of it."""

from tests.engine.test_vision import Bench, make_job
from triptych.core.plan import ETA
from triptych.engine.outcome import Embedded


def test_a_step_takes_the_part_of_the_device_that_it_is_given():
    """Asked for once a step; equal pictures are one, those whose pixels lack do not count."""
    asked = []

    def split(step, waiting, moment):
        asked.append(([one.job for one in step], [one.job for one in waiting], moment.now_s))
        return 0.5

    bench = Bench(split=split, order=lambda waiting, _: range(len(waiting))[::-1])
    for name, content in (("one", "a"), ("two", "b"), ("three", "b"), ("four", "d")):
        bench.submit(name, content)
    bench.engine.expect(make_job("five", "c"), 0.0)
    bench.now = 3.0
    step = bench.plan()
    assert [task.job for task in step.plan.tasks] == ["four"]
    assert step.plan.share == 0.5
    assert asked == [(["four"], ["three", "one"], 3.0)]
    bench.apply(step)
    assert bench.engine.plan(3.0).plan.share == 0.5
    assert asked[1:] == [(["three", "one"], [], 3.0)]


def test_nobody_learns_from_a_slice_that_an_instance_is_slow():
    bench = Bench(split=lambda *_: 0.25)
    bench.submit("one", "a")
    bench.step()  # half a second
    (told,) = bench.of(Embedded)
    assert told.timing.compute_s == told.timing.first_steps.seconds == 0.5 * 0.25**ETA

"""Property tests: the same examples in every run, others on demand."""

from hypothesis import settings

from tests.engine.test_vision import VisionMachine


def test_examples_repeat_unless_new_ones_are_asked_for(request):
    repeats = not request.config.getoption("matrix")
    assert settings().derandomize is repeats
    assert VisionMachine.TestCase.settings.derandomize is repeats

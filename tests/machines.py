"""State machines against naive models, with counted operations.

A step of Hypothesis is a burst of operations drawn as bytes, because drawing is dearer than doing;
all of them shrink. Each test asserts that it did its share, and the shares are 100,000 together.
"""

from collections.abc import Sequence
from typing import ClassVar, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

T = TypeVar("T")

SHARES = {
    "pool": 20_000,
    "radix": 30_000,
    "kv": 24_000,
    "embeddings": 20_000,
    "lease": 20_000,
}
"""Operations that the test of that name does at least."""


class Choices:
    """Choices of one burst, read from its bytes; zeros behind their end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_over(self) -> bool:
        return self._at >= len(self._data)

    def below(self, bound: int) -> int:
        """A number of ``[0, bound)``, with ``bound`` at most 256."""
        self._at += 1
        return 0 if self._at > len(self._data) else self._data[self._at - 1] % bound

    def of(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]


class Counted(RuleBasedStateMachine):
    """A machine that names its operations, and checks itself behind each in ``agree``."""

    operations: ClassVar[tuple[str, ...]]
    """Methods that take ``Choices``; a name that stands twice is twice as likely."""
    num_done = 0

    @rule(data=st.binary(min_size=60, max_size=160))
    def burst(self, data: bytes) -> None:
        choices = Choices(data)
        while not choices.is_over:
            getattr(self, choices.of(self.operations))(choices)
            type(self).num_done += 1
            self.agree()

    def agree(self) -> None:
        """Raise unless the model and what is tested say the same."""
        raise NotImplementedError


def run(name: str, *machines: type[Counted], examples: int) -> None:
    """Run each machine; together they do the share of ``name``."""
    done = 0
    for machine in machines:
        machine.num_done = 0
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=20,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            ),
        )
        done += machine.num_done
    assert done >= SHARES[name], f"{name}: {done} operations"

"""The kernels with a switch at their captured graphs. Imported only where Triton is installed."""

from collections.abc import Callable, Sequence

from torch import Tensor

from cli.gpu.kit import Switch
from triptych.core.layout import Layout
from triptych.executor.batch import Row
from triptych.executor.kernel_operations import Kernels
from triptych.executor.operations import Graphs, Inputs


class SwitchedGraphs:
    """Graphs that a step passes by while the switch is off. Implements ``operations.Graphs``."""

    def __init__(self, inner: Graphs, switch: Switch) -> None:
        self._inner = inner
        self._switch = switch

    def logits(self, work: Sequence[Row]) -> Tensor | None:
        """See ``operations.Graphs``."""
        return self._inner.logits(work) if self._switch.is_on else None


class SwitchedKernels(Kernels):
    """Implements ``operations.Operations``."""

    def __init__(self, switch: Switch) -> None:
        super().__init__(deterministic=False)
        self._switch = switch

    def graphs(
        self,
        compute: Callable[[Inputs], Tensor],
        clear: Callable[[Tensor], None],
        layout: Layout,
        device: str,
    ) -> Graphs:
        """See ``operations.Operations``."""
        return SwitchedGraphs(super().graphs(compute, clear, layout, device), self._switch)

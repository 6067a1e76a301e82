"""Block memory that lies where its view shows it: nothing to copy. Knows no bytes."""

from collections.abc import Callable, Sequence

from triptych.core.ids import BlockId


class HostBytes:
    """The part of ``core.ports.BlockMemory`` that a device would have to work for."""

    def stage(
        self,
        blocks: Sequence[BlockId],  # noqa: ARG002
        layers: range | None = None,  # noqa: ARG002
        then: Callable[[], None] | None = None,
    ) -> None:
        """See ``BlockMemory``: the view is current."""
        if then is not None:
            then()

    def absorb(self, blocks: Sequence[BlockId]) -> None:
        """See ``BlockMemory``: it is where it is needed."""

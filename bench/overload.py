"""What is left of a server's goodput when far more is asked of it than it can do.

The peak is the most attained requests per second over a sweep of rates; the overload a multiple of
the peak's rate. One definition for simulated and live runs. Runs nothing.
"""

from collections.abc import Sequence

import msgspec

from bench.figures import counted, figures
from bench.run import Run
from triptych.core.metrics import percentile


class Overload(msgspec.Struct, frozen=True):
    """Of one system."""

    system: str
    peak_rate: float
    """Offered requests per second at which most were attained."""
    peak: float
    """Attained requests per second there."""
    rate: float
    """Offered in the overload."""
    attained: float
    """Attained requests per second in the overload."""
    share_refused: float
    """Of all requests of the overload."""
    refusal_p99_s: float
    """From the arrival of a refused request to the refusal; 0 if nobody was refused."""

    @property
    def kept(self) -> float:
        """Attained in the overload over the peak; 0 without a peak."""
        return self.attained / self.peak if self.peak else 0.0


def peak_of(runs: Sequence[Run]) -> Run:
    """The run with most attained requests per second."""
    return max(runs, key=attained_per_s)


def attained_per_s(run: Run) -> float:
    """Requests that kept every bound of their class, per second behind the warm-up."""
    return figures(run).effective_requests_per_s


def overload(sweep: Sequence[Run], beyond: Run) -> Overload:
    """``beyond`` compared with the best of ``sweep``."""
    best, rows = peak_of(sweep), counted(beyond)
    refusals = sorted(row.end_s - row.arrival_s for row in rows if row.status == "refused")
    return Overload(
        system=beyond.system,
        peak_rate=best.rate,
        peak=attained_per_s(best),
        rate=beyond.rate,
        attained=attained_per_s(beyond),
        share_refused=len(refusals) / max(1, len(rows)),
        refusal_p99_s=percentile(refusals, 0.99) if refusals else 0.0,
    )

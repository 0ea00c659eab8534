"""Numbers and tables as Markdown."""

import math
from collections.abc import Sequence

from bench.methods.analysis import Estimate

NOT_RUN = "*Not run yet.*"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows under a header; NOT_RUN without rows."""
    if not rows:
        return NOT_RUN
    lines = [" | ".join(header), " | ".join("---" for _ in header)]
    lines += [" | ".join(map(str, row)) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def number(value: float, places: int) -> str:
    """With so many decimals."""
    return "-" if math.isnan(value) else f"{value:.{places}f}"


def interval(estimate: Estimate) -> str:
    """With half of its 95 % interval."""
    if estimate.seeds < 2:
        return f"{estimate.mean:+.3f}" if estimate.seeds else "-"
    return f"{estimate.mean:+.3f} ± {estimate.half_width:.3f}"


def counted(estimate: Estimate) -> str:
    """With its standard error, and the seeds that reach the level."""
    if not estimate.seeds:
        return "-"
    error = "" if estimate.seeds < 2 else f" ± {estimate.standard_error:.2f}"
    return f"{estimate.mean:+.2f}{error} ({estimate.seeds})"


def errors(estimate: Estimate) -> str:
    """With its distance from 0 in standard errors."""
    if estimate.seeds < 2:
        return counted(estimate)
    away = f"{estimate.mean / estimate.standard_error:+.1f}" if estimate.standard_error > 0 else "-"
    return f"{estimate.mean:+.3f} ± {estimate.standard_error:.3f} ({away} s.e., {estimate.seeds})"

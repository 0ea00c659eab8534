"""Clocks of two machines."""

from madpo_client.doctor.findings import Finding, error, ok, warning

_NOTICED_S = 5.0
_DANGEROUS_S = 300.0
"""A third of the 15 minutes after which S3 servers refuse signed requests."""


def compare_clocks(check: str, other: str, ahead_s: float, *, uncertainty_s: float) -> Finding:
    """Judge how far the clock of another machine is ahead of this one's."""
    message = f"the clock of {other} is {abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} ours"
    advice = "let both machines follow the same time servers (chrony, systemd-timesyncd); compare `date -u` on both"
    surely_s = abs(ahead_s) - uncertainty_s
    if surely_s > _DANGEROUS_S:
        return error(check, f"{message}: signatures and certificates will be refused", advice)
    if surely_s > _NOTICED_S:
        return warning(check, f"{message}: times of jobs will be misleading", advice)
    return ok(check, f"the clocks of {other} and this machine agree within {abs(ahead_s) + uncertainty_s:.1f} s")

"""`madpo doctor`: is everything as it should be, and if not, what to do.

One module per area; a check is a function that returns or yields findings. Packages that only services have are
imported by the checks that need them.
"""

from madpo_client.doctor.findings import Finding, Level, exit_code

__all__ = ["Finding", "Level", "exit_code"]

"""The per-pair ledger of a policy training: read as an Arrow table, asked with SQL, summed up, shown.

Needs the extra `ledger`; importing this package without it says so.
"""

from madpo.errors import FailedPreconditionError

try:
    import duckdb  # noqa: F401
    import pyarrow  # noqa: F401
except ImportError as error:
    raise FailedPreconditionError(f"ledgers are read with {error.name}: pip install 'madpo[ledger]'") from error

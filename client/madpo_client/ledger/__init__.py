"""The per-pair ledger of a policy training: read as an Arrow table, asked with SQL, summed up, shown.

Needs the extra `ledger`; importing this package without it says so.
"""

from madpo_client.extras import require_extra

require_extra("ledger", "reading ledgers", ["duckdb", "pyarrow"])

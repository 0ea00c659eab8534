"""What a file of rows may ask of its reader."""

from dataclasses import dataclass

KIB, MIB = 1024, 1024 * 1024


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """Bounds on what is read, whatever the file says of itself; each default is far above what training can use."""

    max_rows: int = 5_000_000
    """Most rows of all files together."""
    max_row_bytes: int = MIB
    """Largest row: some 250 thousand tokens, and small enough to hold many."""
    max_field_bytes: int = 512 * KIB
    """Largest value of one column in a row."""
    max_columns: int = 1_000
    """Most columns of a table, or keys of a JSON row."""
    max_depth: int = 32
    """Deepest nesting of a row."""
    max_decompressed_bytes: int = 16 * 1024 * MIB
    """Most bytes that all files together may decompress to."""
    max_compression_ratio: int = 100
    """Most decompressed bytes per compressed byte."""
    max_page_bytes: int = 32 * MIB
    """Largest Parquet page or Arrow record batch, uncompressed: it bounds what reading one takes."""


DEFAULT_LIMITS = ReadLimits()

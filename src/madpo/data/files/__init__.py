"""Files of rows, read as a stream in bounded memory: one module per format, one registry in `reading`."""

from madpo.data.files.limits import DEFAULT_LIMITS, ReadLimits
from madpo.data.files.reading import READERS, DataFile, FileRows, detect_format, read_rows

__all__ = ["DEFAULT_LIMITS", "READERS", "DataFile", "FileRows", "ReadLimits", "detect_format", "read_rows"]

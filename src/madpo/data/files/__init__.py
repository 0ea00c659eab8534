"""Files of rows, read as a stream in bounded memory: one module per format, one registry in `reading`."""

"""Model directories as files: what may be in one, what it says of itself, and what stays as it came. No torch."""

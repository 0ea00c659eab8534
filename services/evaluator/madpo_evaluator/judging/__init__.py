"""Judges: asking language models behind chat endpoints which of two responses is better."""

"""Reward margins of training pairs: where they come from, kept before use, and measured before the first step."""

"""Scores of a reward model for whoever needs them: one way to reach the service, and to bear its absence."""

"""One file from data to a verdict: a recipe becomes a chain of jobs, and what they measured one page."""

"""What each kind of job of an evaluator does: one module a kind."""

"""Responses drawn from a policy: what any engine offers, and the engines."""

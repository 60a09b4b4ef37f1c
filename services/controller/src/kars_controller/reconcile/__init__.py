"""Reconcilers, pure functions from a resource and what was observed to a plan; and their engine."""

"""Synthetic name answers: what software in a sandbox is told when it insists on resolving a name."""

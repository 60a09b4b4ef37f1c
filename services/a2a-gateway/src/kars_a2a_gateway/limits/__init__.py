"""Rates and quotas of callers and agents."""

"""Reconciles kars resources, issues identities, signs and distributes policy."""

"""Tokens: estimated, reserved, charged. The audit log is the ledger's journal (ADR 0003)."""

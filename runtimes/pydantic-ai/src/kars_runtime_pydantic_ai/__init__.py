"""Runs a user's unmodified Pydantic AI agent in a kars sandbox: its first task, then chat."""

"""Runs a Pydantic AI agent in a kars sandbox."""

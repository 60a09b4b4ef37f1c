"""Runs an OpenAI Agents SDK agent in a kars sandbox."""

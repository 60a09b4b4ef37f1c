"""Finds the user's agent: `MODULE:ATTR` in the folder of agent code, or the only agent there is."""

from pathlib import Path
from typing import Any

from kars_sdk.hosting import LoadError, load_object
from pydantic_ai import Agent

__all__ = ["LoadError", "load_agent"]


def load_agent(folder: Path, entrypoint: str | None) -> Agent[Any, Any]:
    """Import the user's module and return its agent.

    Raises:
        LoadError: `agent_code_missing`, `agent_module_ambiguous`, `agent_import_failed`, `agent_not_found`.
    """
    return load_object(folder, entrypoint, Agent)

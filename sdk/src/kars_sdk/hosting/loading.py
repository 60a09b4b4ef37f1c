"""Finds the user's object: `MODULE:ATTR` in the folder of agent code, or the only one of its class."""

import importlib
import sys
from pathlib import Path
from typing import Any, TypeVar

_USUAL_NAMES = ("agent", "main", "app")
_T = TypeVar("_T")


class LoadError(Exception):
    """The agent cannot be found or its module does not import; `reason` is stable."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def load_object(folder: Path, entrypoint: str | None, wanted: type[_T]) -> _T:
    """Import the user's module and return its object of a framework's class.

    Args:
        folder: put first on the import path.
        entrypoint: `module`, `module:attribute`, or None to look for the only one.
        wanted: the framework's class.

    Raises:
        LoadError: `agent_code_missing`, `agent_module_ambiguous`, `agent_import_failed`, `agent_not_found`.
    """
    if not folder.is_dir():
        raise LoadError("agent_code_missing", f"{folder} is not there")
    sys.path.insert(0, str(folder))
    module_name, _, attribute = (entrypoint or _only_module(folder)).partition(":")
    try:
        module: Any = importlib.import_module(module_name)
    except Exception as exc:
        raise LoadError(
            "agent_import_failed", f"importing {module_name} failed: {type(exc).__name__}: {exc}"
        ) from exc
    kind = f"{wanted.__module__.partition('.')[0]}.{wanted.__name__}"
    if attribute:
        found = getattr(module, attribute, None)
        if not isinstance(found, wanted):
            raise LoadError("agent_not_found", f"{module_name}:{attribute} is no {kind}")
        return found
    agents = {name: value for name, value in vars(module).items() if isinstance(value, wanted)}
    if len(agents) != 1:
        names = ", ".join(sorted(agents)) or "none"
        raise LoadError("agent_not_found", f"{module_name} has agents: {names}; name one as MODULE:ATTR")
    return next(iter(agents.values()))


def _only_module(folder: Path) -> str:
    modules = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    usual = [name for name in _USUAL_NAMES if name in modules]
    chosen = usual[:1] or modules
    if len(chosen) != 1:
        names = ", ".join(modules) or "none"
        raise LoadError("agent_module_ambiguous", f"modules in {folder}: {names}; name one as MODULE:ATTR")
    return chosen[0]

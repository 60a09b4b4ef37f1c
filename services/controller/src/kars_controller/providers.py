"""The operator's model providers, and the share of them that one router is given.

    {"default": "openai", "providers": [{"name": "openai", "baseUrl": "...", "auth": {"keyFile": "..."}}]}

A policy names providers freely; a name that is not configured means the default provider, if one is set.
Keys leave here only as files of a router that needs them.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kars_common.errors import FailedPreconditionError

_MAX_FILE_BYTES = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class ProviderShare:
    """Files for one router, by path relative to its state directory, and the names left unresolved."""

    files: Mapping[str, bytes] = field(repr=False)
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Providers:
    """The providers file, read."""

    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """Content of the files that entries name, by the name in the entry."""
    default: str = ""
    problem: str = ""
    """Why there are none; empty when the file was read."""

    def share(self, wanted: Iterable[str]) -> ProviderShare:
        """Return what a router needs to call these providers, and nothing of the others."""
        files: dict[str, bytes] = {}
        entries: list[dict[str, Any]] = []
        unknown: list[str] = []
        for name in dict.fromkeys(wanted):
            found = self.entries.get(name) or self.entries.get(self.default)
            if found is None:
                unknown.append(name)
                continue
            entry = {**found, "name": name}
            if "auth" in entry:
                path = f"secrets/{len(entries)}.key"
                files[path] = self.secrets[entry["auth"]["keyFile"]]
                entry["auth"] = {**entry["auth"], "keyFile": path}
            if "caFile" in entry:
                path = f"secrets/{len(entries)}.ca.pem"
                files[path] = self.secrets[entry["caFile"]]
                entry["caFile"] = path
            entries.append(entry)
        files["providers.json"] = json.dumps({"providers": entries}, sort_keys=True).encode()
        return ProviderShare(files=files, unknown=tuple(unknown))


def read(path: Path) -> Providers:
    """Read the providers file and the files that it names; what is wrong is said in `problem`."""
    try:
        document = json.loads(_read(path))
        entries = {str(entry["name"]): dict(entry) for entry in document["providers"]}
        named = [entry["auth"]["keyFile"] for entry in entries.values() if entry.get("auth")]
        named += [entry["caFile"] for entry in entries.values() if entry.get("caFile")]
        for entry in entries.values():
            for optional in ("auth", "caFile"):
                if not entry.get(optional):
                    entry.pop(optional, None)
        secrets = {name: _read(path.parent / name) for name in named}
    except FailedPreconditionError as exc:
        return Providers(problem=exc.message)
    except (ValueError, TypeError, KeyError, AttributeError):
        return Providers(problem=f"{path.name} is not a providers file")
    return Providers(entries=entries, secrets=secrets, default=str(document.get("default", "")))


def stamp(path: Path) -> tuple[float, int]:
    """Return what changes when the providers file is written."""
    try:
        status = path.stat()
    except OSError:
        return (0.0, 0)
    return (status.st_mtime, status.st_size)


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise FailedPreconditionError(
            "providers_unreadable", f"cannot read {path.name}: {exc.strerror}"
        ) from exc
    if len(data) > _MAX_FILE_BYTES:
        raise FailedPreconditionError(
            "providers_unreadable", f"{path.name} is larger than {_MAX_FILE_BYTES} bytes"
        )
    return data

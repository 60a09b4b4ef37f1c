"""providers.json and the key files beside it, written for this platform's routers.

Keys go into files that only this user can read, never into the JSON, an argument or a child's environment.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kars_common import files
from kars_common.errors import InvalidInputError

KEY_VARIABLES = ("KARS_PROVIDER_KEY", "OPENAI_API_KEY")
_URL_VARIABLE = "KARS_PROVIDER_URL"
_OPENAI_URL = "https://api.openai.com/v1"
_DEFAULT_NAME = "openai"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_URL = re.compile(r"https?://[^\s?#@]+")


@dataclass(frozen=True, kw_only=True)
class Provider:
    """One endpoint that models are served at."""

    name: str
    url: str
    key: str = field(repr=False, default="")


def from_options(given: list[str], key_files: list[str], environ: Mapping[str, str]) -> list[Provider]:
    """Return the providers that the command line and the environment name.

    Args:
        given: `name=url` each.
        key_files: `name=file` each, or one `file` for the first provider.
        environ: KARS_PROVIDER_URL with KARS_PROVIDER_KEY, or OPENAI_API_KEY, where nothing is given.

    Raises:
        InvalidInputError: `provider_invalid`, `provider_key_unreadable`.
    """
    named = dict(_pair(item) for item in given)
    if not named and environ.get(_URL_VARIABLE):
        named[_DEFAULT_NAME] = environ[_URL_VARIABLE]
    if not named and environ.get("OPENAI_API_KEY"):
        named[_DEFAULT_NAME] = _OPENAI_URL
    keys = _keys(key_files, list(named))
    from_environ = next((environ[name] for name in KEY_VARIABLES if environ.get(name)), "")
    providers = []
    for name, url in named.items():
        if not _NAME.fullmatch(name) or not _URL.fullmatch(url):
            raise InvalidInputError("provider_invalid", f"got {name}={url}, expected name=https://host/v1")
        providers.append(
            Provider(
                name=name, url=url, key=keys.get(name) or (from_environ if name == next(iter(named)) else "")
            )
        )
    return providers


def write(home: Path, providers: list[Provider]) -> None:
    """Write providers.json and its key files; the first provider stands in for names without an entry."""
    entries: list[dict[str, Any]] = []
    for provider in providers:
        entry: dict[str, Any] = {"name": provider.name, "baseUrl": provider.url}
        if provider.key:
            path = f"secrets/{provider.name}.key"
            files.replace(home / path, provider.key.encode() + b"\n")
            entry["auth"] = {"header": "Authorization", "format": "Bearer {key}", "keyFile": path}
        entries.append(entry)
    document: dict[str, Any] = {"providers": entries}
    if entries:
        document["default"] = entries[0]["name"]
    files.replace(home / "providers.json", json.dumps(document, indent=2).encode() + b"\n")


def without_keys(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for child processes: keys are in files by then."""
    return {name: value for name, value in environ.items() if name not in KEY_VARIABLES}


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise InvalidInputError("provider_invalid", f"got {text!r}, expected name=value")
    return name, value


def _keys(key_files: list[str], names: list[str]) -> dict[str, str]:
    keys: dict[str, str] = {}
    for text in key_files:
        name, equals, path = text.partition("=")
        if not equals:
            name, path = (names or [_DEFAULT_NAME])[0], text
        try:
            keys[name] = Path(path).expanduser().read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as exc:
            reason = os.strerror(exc.errno) if isinstance(exc, OSError) and exc.errno else "not ASCII"
            raise InvalidInputError("provider_key_unreadable", f"key file {path}: {reason}") from None
    return keys

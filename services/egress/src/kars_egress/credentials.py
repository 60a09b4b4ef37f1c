"""Secrets that the proxy puts into requests, so that agents never hold them.

One JSON file names them: `{"credentials": {"<name>": {"header": "authorization", "format": "Bearer {secret}",
"file": "<path>"}}}`, paths relative to it. A secret file must be closed to other users. Both are read again
when they change. A name that leads to no secret leaves its entries out of Envoy: a request without it is not
sent.
"""

import asyncio
import logging
import re
import stat
from collections.abc import Callable
from pathlib import Path

import orjson

_LOG = logging.getLogger(__name__)
_MAX_BYTES = 64 * 1024
_POLL_S = 2.0
_HEADER = re.compile(r"[a-z0-9-]{1,64}")

Header = tuple[str, str]
"""Name and value."""
Lookup = Callable[[str], Header | None]


class Credentials:
    """The secrets of one file; None has none."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._headers: dict[str, Header] = {}

    def lookup(self, name: str) -> Header | None:
        """Return the header that a name stands for."""
        return self._headers.get(name)

    def refresh(self) -> set[str]:
        """Read everything again; returns the names whose header changed."""
        before, self._headers = self._headers, self._read()
        return {
            name
            for name in before.keys() | self._headers.keys()
            if before.get(name) != self._headers.get(name)
        }

    async def run(self, changed: Callable[[set[str]], None]) -> None:
        """Notice changes, for ever."""
        while self._file is not None:
            await asyncio.sleep(_POLL_S)
            names = self.refresh()
            if names:
                changed(names)

    def _read(self) -> dict[str, Header]:
        if self._file is None:
            return {}
        found: dict[str, Header] = {}
        try:
            document = orjson.loads(_bounded(self._file))
            named = dict(document["credentials"])
        except (OSError, ValueError, KeyError, TypeError):
            _LOG.exception("the credentials file cannot be read: what needs one is closed")
            return found
        for name, value in named.items():
            try:
                found[name] = self._header(value)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                # Never the error's text: it may hold the secret.
                _LOG.error(
                    "a credential cannot be used", extra={"credential": name, "why": type(error).__name__}
                )
        return found

    def _header(self, value: dict[str, str]) -> Header:
        if self._file is None:
            raise ValueError("no file")
        path = self._file.parent / value["file"]
        if path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
            raise ValueError("the secret is open to other users")
        secret = _bounded(path).decode("ascii").strip()
        header = value["header"].lower()
        text = value.get("format", "{secret}").replace("{secret}", secret)
        if not secret or not _HEADER.fullmatch(header) or not text.isprintable() or "%" in text:
            # A percent sign would be read as one of Envoy's own variables.
            raise ValueError("the header cannot be sent")
        return header, text


def _bounded(path: Path) -> bytes:
    with path.open("rb") as reader:
        data = reader.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError("the file is too large")
    return data

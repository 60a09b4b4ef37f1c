"""Reads manifests: YAML files with several documents, bounded, remembering on which line each field stands.

Refuses to know what a field means, with two exceptions that only make sense on this side: the namespace
that `-n` gives, and folders of agent code, which are named relative to the manifest.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kars_common.errors import InvalidInputError

from kars_cli import yaml_nodes

MAX_FILE_BYTES = 1024 * 1024
MAX_FILES = 200
MAX_DOCUMENTS = 500
_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One document of one file."""

    file: Path
    document: dict[str, Any]
    lines: dict[str, int]
    """Line of each field path, 1-based; the empty path is the document."""

    @property
    def title(self) -> str:
        """`kind/name` for people."""
        metadata = self.document.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        return f"{str(self.document.get('kind', '?')).lower()}/{name or '?'}"

    def place(self, field: str) -> str:
        """Return `file:line field`; the line of the closest parent when the field is not there."""
        path = field
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return f"{self.file}:{self.lines.get(path, 1)} {field}"


def read(paths: list[Path]) -> list[Manifest]:
    """Read files and folders (manifests sorted by name), policies before the sandboxes that name them.

    Raises:
        InvalidInputError: `manifest_unreadable`, `manifest_too_large`, `manifest_malformed`,
            `manifest_empty`.
    """
    manifests = [manifest for path in paths for file in _files(path) for manifest in _read_file(file)]
    if not manifests:
        raise InvalidInputError("manifest_empty", f"no manifest in {', '.join(str(path) for path in paths)}")
    if len(manifests) > MAX_DOCUMENTS:
        raise InvalidInputError(
            "manifest_too_large", f"{len(manifests)} documents, at most {MAX_DOCUMENTS} at once"
        )
    return sorted(manifests, key=lambda manifest: manifest.document.get("kind") == "KarsSandbox")


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    found = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES and file.is_file())
    if len(found) > MAX_FILES:
        raise InvalidInputError(
            "manifest_too_large", f"{path} has {len(found)} manifests, at most {MAX_FILES}"
        )
    yield from found


def _read_file(file: Path) -> Iterator[Manifest]:
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
        text = data.decode("utf-8")
    except OSError as exc:
        raise InvalidInputError("manifest_unreadable", f"cannot read {file}: {exc.strerror}") from None
    except UnicodeDecodeError as exc:
        raise InvalidInputError("manifest_malformed", f"{file} is not UTF-8 (byte {exc.start})") from None
    if len(data) > MAX_FILE_BYTES:
        raise InvalidInputError("manifest_too_large", f"{file} has more than {MAX_FILE_BYTES} bytes")
    try:
        documents = list(yaml_nodes.load_all(text))
    except yaml_nodes.YamlError as exc:
        raise InvalidInputError("manifest_malformed", f"{file}:{exc.line} {exc}") from exc
    for document, lines in documents:
        if not isinstance(document, dict):
            where = f"{file}:{lines.get('', 1)}"
            raise InvalidInputError("manifest_malformed", f"{where} a document must be an object")
        _resolve_folders(document, file.parent)
        yield Manifest(file=file, document=document, lines=lines)


def _resolve_folders(document: dict[str, Any], base: Path) -> None:
    """Make `agentCode.local` folders absolute; they are named relative to the manifest."""
    spec = document.get("spec")
    runtime = spec.get("runtime") if isinstance(spec, dict) else None
    for variant in runtime.values() if isinstance(runtime, dict) else ():
        code = variant.get("agentCode") if isinstance(variant, dict) else None
        local = code.get("local") if isinstance(code, dict) else None
        if not isinstance(local, dict):
            continue
        for name in ("path", "workspace"):
            if isinstance(local.get(name), str) and local[name]:
                local[name] = str((base / local[name]).resolve())

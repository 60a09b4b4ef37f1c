"""Backup and restore of a relay's state: `python -m kars_relay.backup create|restore|check`.

    python -m kars_relay.backup create  STATE_DIR ARCHIVE.tar     # the relay may run
    python -m kars_relay.backup check   ARCHIVE.tar
    python -m kars_relay.backup restore ARCHIVE.tar STATE_DIR     # into an empty directory

Databases are copied through SQLite's own online backup, so each is one consistent moment; logs are copied
up to a whole record. The order matters: mailboxes first, the registration log last, so that no copy of a
registry points at a leaf that its copy of the log lacks. Mail that was accepted after the backup is not in
it, and mail that was acknowledged after it comes back: receivers drop it by its ids. The archive holds the
logs' signing keys: keep it like a private key (it is written 0600).
"""

import argparse
import contextlib
import hashlib
import io
import json
import shutil
import sqlite3
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO

from kars_common.errors import FailedPreconditionError, InvalidInputError, KarsError

_FORMAT = 1
_MANIFEST = "manifest.json"
_MAILBOXES = "mailboxes.db"
_BODIES = "mailboxes.bodies"
_DATABASES = (_MAILBOXES, "registry.db")
_TREES = ("audit", "registrations", "policy")
_KEYS = ("audit-signing.key", "registrations-signing.key")
_SKIPPED = frozenset(("lock", ".lock"))
_MAX_MEMBER_BYTES = 1 << 40
_CHUNK = 1 << 20


def create(state: Path, archive: Path) -> dict[str, str]:
    """Write an archive of a state directory; returns the SHA-256 of each member.

    Raises:
        FailedPreconditionError: `backup_source_invalid`.
    """
    if not (state / "registry.db").exists():
        raise FailedPreconditionError("backup_source_invalid", f"{state} is no state directory of a relay")
    digests: dict[str, str] = {}
    archive.touch(mode=0o600)
    archive.chmod(0o600)
    with tarfile.open(archive, "w") as tar, tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
        for name, path in _sources(state, Path(scratch)):
            data = path.read_bytes() if path.suffix not in {".db", ".seg"} else None
            if data is None:
                digests[name] = _digest(path)
                tar.add(path, name, filter=_private)
            else:
                data = _whole_records(path, data)
                digests[name] = hashlib.sha256(data).hexdigest()
                _add(tar, name, data)
        manifest = {"format": _FORMAT, "sha256": digests}
        _add(tar, _MANIFEST, json.dumps(manifest, sort_keys=True).encode())
    return digests


def check(archive: Path) -> dict[str, str]:
    """Read an archive whole and compare it with its manifest; returns the digests.

    Raises:
        InvalidInputError: `backup_damaged`.
    """
    with tarfile.open(archive) as tar:
        found: dict[str, str] = {}
        manifest: bytes | None = None
        for member in tar:
            name = _safe_name(member)
            content = tar.extractfile(member)
            assert content is not None  # `_safe_name` lets files through only
            if name == _MANIFEST:
                manifest = content.read(_CHUNK)
            else:
                found[name] = _stream_digest(content)
    try:
        said = json.loads(manifest or b"")
    except ValueError as exc:
        raise _damaged("it has no manifest; it was not finished") from exc
    if not isinstance(said, dict) or said.get("format") != _FORMAT or said.get("sha256") != found:
        raise _damaged("its content is not what its manifest says")
    return found


def restore(archive: Path, state: Path) -> None:
    """Fill an empty state directory from an archive.

    Raises:
        InvalidInputError: `backup_damaged`; nothing was written.
        FailedPreconditionError: `backup_target_not_empty`.
    """
    check(archive)
    if state.exists() and any(state.iterdir()):
        raise FailedPreconditionError("backup_target_not_empty", f"{state} is not empty; restore elsewhere")
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            name = _safe_name(member)
            if name == _MANIFEST:
                continue
            target = state / name
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            content = tar.extractfile(member)
            assert content is not None  # `_safe_name` lets files through only
            with target.open("wb") as file:
                target.chmod(0o600)
                while chunk := content.read(_CHUNK):
                    file.write(chunk)


def _sources(state: Path, scratch: Path) -> Iterator[tuple[str, Path]]:
    """Yield name and file of everything to keep, in the order that keeps copies consistent."""
    for name in _DATABASES:
        if (state / name).exists():
            copy = _copy_database(state / name, scratch / name)
            if name == _MAILBOXES:
                yield from _copy_bodies(state / _BODIES, scratch / _BODIES, copy)
            yield name, copy
    for name in _KEYS:
        yield name, state / name
    for tree in _TREES:
        # Signed heads before the records they speak of: a newer head than its copy would read as loss.
        found = sorted((state / tree).rglob("*"), key=lambda path: (path.suffix == ".jsonl", path.name))
        for path in found:
            if path.is_file() and path.name not in _SKIPPED and not path.name.endswith(".new"):
                yield str(path.relative_to(state)), path


def _copy_database(source: Path, target: Path) -> Path:
    with (
        closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as old,
        closing(sqlite3.connect(target)) as new,
    ):
        old.backup(new)
    return target


def _copy_bodies(source: Path, target: Path, database: Path) -> Iterator[tuple[str, Path]]:
    """Copy the bodies that a copied database names, and let it forget those that went meanwhile.

    A segment goes only when all that it held was acknowledged: what is forgotten here was delivered.
    """
    target.mkdir(mode=0o700)
    sizes: dict[int, int] = {}
    for path in sorted(source.glob("*.seg")):
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(path, target / path.name)
            sizes[int(path.stem)] = (target / path.name).stat().st_size
    with closing(sqlite3.connect(database)) as db, db:
        rows = db.execute("SELECT key, segment, place + size FROM runs").fetchall()
        gone = [(key,) for key, segment, end in rows if sizes.get(segment, 0) < end]
        db.executemany("DELETE FROM runs WHERE key = ?", gone)
    named = {segment for _, segment, _ in rows}
    for number in sorted(named & sizes.keys()):
        name = f"{number:012d}.seg"
        yield f"{_BODIES}/{name}", target / name


def _whole_records(path: Path, data: bytes) -> bytes:
    """Leave out the half of a record that was being written while we read."""
    return data[: data.rfind(b"\n") + 1] if path.suffix == ".jsonl" else data


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return _stream_digest(file)


def _stream_digest(content: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := content.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _private(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.mode, info.uid, info.gid, info.uname, info.gname = 0o600, 0, 0, "", ""
    return info


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = _private(tarfile.TarInfo(name))
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _safe_name(member: tarfile.TarInfo) -> str:
    parts = member.name.split("/")
    known = (*_DATABASES, *_KEYS, _MANIFEST)
    named = member.name in known or (parts[0] in (*_TREES, _BODIES) and ".." not in parts and len(parts) > 1)
    if not member.isfile() or not named or member.size > _MAX_MEMBER_BYTES:
        raise _damaged(f"it has a member that no backup has: {member.name[:100]!r}")
    return member.name


def _damaged(what: str) -> InvalidInputError:
    return InvalidInputError("backup_damaged", f"the archive is refused: {what}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m kars_relay.backup", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("create", help="archive a state directory; the relay may run")
    made.add_argument("state", type=Path)
    made.add_argument("archive", type=Path)
    checked = commands.add_parser("check", help="compare an archive with its manifest")
    checked.add_argument("archive", type=Path)
    restored = commands.add_parser("restore", help="fill an empty state directory")
    restored.add_argument("archive", type=Path)
    restored.add_argument("state", type=Path)
    given = parser.parse_args(arguments)
    try:
        if given.command == "create":
            members = create(given.state, given.archive)
        elif given.command == "check":
            members = check(given.archive)
        else:
            restore(given.archive, given.state)
            members = check(given.archive)
    except (KarsError, OSError, sqlite3.Error, tarfile.TarError) as exc:
        sys.stderr.write(f"kars-relay backup: {exc}\n")
        return 1
    sys.stdout.write(f"{given.command}: {len(members)} files\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

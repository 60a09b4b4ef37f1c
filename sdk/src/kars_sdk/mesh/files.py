"""Files between agents: hashed as a whole and chunk by chunk, bounded, resumed after any interruption.

The receiver pulls. An offer names the file and the hash of every chunk; the receiver asks for a few chunks at
a time, writes each where it belongs once its hash fits, and gives the file its name when all of it fits. Both
sides keep their state on disk. A name is one plain file name: whatever looks like a path is refused.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kars_sdk.mesh import payloads
from kars_sdk.mesh.codec import Reader, Writer
from kars_sdk.mesh.errors import MalformedError, PayloadError

CHUNK_BYTES = 256 * 1024
MAX_FILE_BYTES = 256 * 1024 * 1024
DEFAULT_MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_CHUNKS = MAX_FILE_BYTES // CHUNK_BYTES
WINDOW = 8
"""Chunks asked for at once: 2 MiB on the way."""

MAX_DESCRIPTION = 1024
_NAME = re.compile(r"[^\x00-\x1f\x7f/\\:]{1,255}")


def check_name(name: str) -> str:
    """Return a file name that is one, nothing else.

    Raises:
        PayloadError: `file_name_refused`.
    """
    plain = _NAME.fullmatch(name) is not None and not name.startswith(".") and name.strip() == name
    if not plain or len(name.encode(errors="replace")) > 255 or not name.isprintable():
        raise PayloadError("file_name_refused", f"a file is named by a plain name, not {name[:64]!r}")
    return name


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is offered."""

    transfer_id: bytes
    name: str
    size: int
    sha256: bytes
    chunk_hashes: tuple[bytes, ...]
    description: str = ""

    def __post_init__(self) -> None:
        expected = -(-self.size // CHUNK_BYTES)
        if not 0 <= self.size <= MAX_FILE_BYTES or len(self.chunk_hashes) != expected:
            raise PayloadError("manifest_invalid", f"a file of {self.size} bytes has {expected} chunks")
        check_name(self.name)

    def chunk_length(self, index: int) -> int:
        """Return how long a chunk must be."""
        return min(CHUNK_BYTES, self.size - index * CHUNK_BYTES)

    def encode(self) -> bytes:
        """Return the bytes of an offer."""
        writer = Writer().raw(self.transfer_id).text(self.name).u64(self.size).raw(self.sha256)
        return writer.text(self.description).raw(b"".join(self.chunk_hashes)).bytes()

    @classmethod
    def decode(cls, data: bytes) -> "Manifest":
        """Read an offer.

        Raises:
            MalformedError, PayloadError: it is none, or breaks a rule.
        """
        reader = Reader(data, what="offer", max_bytes=MAX_CHUNKS * 32 + 8192)
        transfer_id, name, size = reader.raw(16), reader.text(1024), reader.u64()
        sha256, description = reader.raw(32), reader.text(4 * MAX_DESCRIPTION)
        hashes = reader.rest()
        if len(hashes) % 32:
            raise MalformedError("offer_hashes", "an offer's hashes have 32 bytes each")
        return cls(
            transfer_id=transfer_id, name=name, size=size, sha256=sha256, description=description,
            chunk_hashes=tuple(hashes[at : at + 32] for at in range(0, len(hashes), 32)),
        )  # fmt: skip


def manifest(path: Path, *, description: str = "", max_bytes: int = DEFAULT_MAX_FILE_BYTES) -> Manifest:
    """Hash a file for an offer. Blocks; call it in a thread.

    Raises:
        PayloadError: `file_not_readable`, `file_too_large`, `file_name_refused`, `description_too_long`.
    """
    if len(description) > MAX_DESCRIPTION:
        raise PayloadError("description_too_long", f"a description has at most {MAX_DESCRIPTION} characters")
    check_name(path.name)
    whole, hashes, size = hashlib.sha256(), [], 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                size += len(chunk)
                if size > max_bytes:
                    raise PayloadError("file_too_large", f"a file has at most {max_bytes} bytes")
                whole.update(chunk)
                hashes.append(hashlib.sha256(chunk).digest())
    except OSError as exc:
        raise PayloadError("file_not_readable", f"the file cannot be read: {exc.strerror}") from exc
    return Manifest(
        transfer_id=os.urandom(16), name=path.name, size=size, sha256=whole.digest(),
        chunk_hashes=tuple(hashes), description=description,
    )  # fmt: skip


def read_chunk(path: Path, offered: Manifest, index: int) -> bytes:
    """Read a chunk of a file that was offered. Blocks.

    Raises:
        PayloadError: `chunk_unknown`, `file_changed`, `file_not_readable`.
    """
    if not 0 <= index < len(offered.chunk_hashes):
        raise PayloadError("chunk_unknown", f"{offered.name} has no chunk {index}")
    try:
        with path.open("rb") as file:
            file.seek(index * CHUNK_BYTES)
            chunk = file.read(offered.chunk_length(index))
    except OSError as exc:
        raise PayloadError("file_not_readable", f"the file cannot be read: {exc.strerror}") from exc
    if hashlib.sha256(chunk).digest() != offered.chunk_hashes[index]:
        raise PayloadError("file_changed", f"{offered.name} is not what was offered any more")
    return chunk


class Incoming:
    """One file that is being received into a folder; what was written is found again after a restart."""

    def __init__(self, folder: Path, offered: Manifest) -> None:
        """Begin, or go on where an interruption left it. Blocks.

        Raises:
            PayloadError: `file_not_writable`.
        """
        self.offered = offered
        self._folder = folder
        self._partial = folder / f".{offered.transfer_id.hex()}.partial"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as exc:
            raise PayloadError("file_not_writable", f"the file cannot be written: {exc.strerror}") from exc
        self._have = {index for index in range(len(offered.chunk_hashes)) if self._is_whole(index)}

    @property
    def complete(self) -> bool:
        """Whether every chunk is there."""
        return len(self._have) == len(self.offered.chunk_hashes)

    def missing(self, most: int) -> list[int]:
        """Return the first chunks that are not there."""
        found = (index for index in range(len(self.offered.chunk_hashes)) if index not in self._have)
        return [index for index, _ in zip(found, range(most), strict=False)]

    def write(self, index: int, chunk: bytes) -> None:
        """Take a chunk whose hash fits. Blocks.

        Raises:
            PayloadError: `chunk_unknown`, `chunk_wrong`.
        """
        if not 0 <= index < len(self.offered.chunk_hashes):
            raise PayloadError("chunk_unknown", f"{self.offered.name} has no chunk {index}")
        if hashlib.sha256(chunk).digest() != self.offered.chunk_hashes[index]:
            raise PayloadError("chunk_wrong", f"chunk {index} of {self.offered.name} is not what was offered")
        os.pwrite(self._file, chunk, index * CHUNK_BYTES)
        self._have.add(index)

    def finish(self) -> Path:
        """Check the whole, sync, and give the file its name, or `name-2` where that is taken. Blocks.

        Raises:
            PayloadError: `file_wrong`: the whole does not fit although its chunks do; it is removed.
        """
        whole = hashlib.sha256()
        for index in range(len(self.offered.chunk_hashes)):
            whole.update(os.pread(self._file, CHUNK_BYTES, index * CHUNK_BYTES))
        if whole.digest() != self.offered.sha256:
            self.abandon()
            raise PayloadError("file_wrong", f"{self.offered.name} does not have the hash that was offered")
        os.ftruncate(self._file, self.offered.size)
        os.fsync(self._file)
        target = self._named()
        os.close(self._file)
        return target

    def _named(self) -> Path:
        plain = Path(self.offered.name)
        for number in range(1, 10_000):
            name = self.offered.name if number == 1 else f"{plain.stem}-{number}{plain.suffix}"
            target = self._folder / name
            try:
                os.link(self._partial, target, follow_symlinks=False)  # fails where the name is taken
            except FileExistsError:
                continue
            self._partial.unlink()
            return target
        raise PayloadError("file_name_taken", f"there are too many files called {self.offered.name}")

    def abandon(self) -> None:
        """Remove what was received."""
        os.close(self._file)
        self._partial.unlink(missing_ok=True)

    def close(self) -> None:
        """Stop for now; what was received stays."""
        os.close(self._file)

    def _is_whole(self, index: int) -> bool:
        chunk = os.pread(self._file, self.offered.chunk_length(index), index * CHUNK_BYTES)
        return hashlib.sha256(chunk).digest() == self.offered.chunk_hashes[index]


def encode_request(transfer_id: bytes, wanted: Sequence[int]) -> bytes:
    """Return a request for chunks."""
    return payloads.encode_json({"transfer": transfer_id.hex(), "chunks": list(wanted)})


def decode_request(data: bytes) -> tuple[bytes, list[int]]:
    """Read a request for chunks.

    Raises:
        PayloadError: it is none.
    """
    document = payloads.decode_object(data)
    wanted = [
        each for each in payloads.list_of(document, "chunks", most=WINDOW)
        if type(each) is int and 0 <= each < MAX_CHUNKS
    ]  # fmt: skip
    return _transfer_id(document), wanted


def encode_chunk(transfer_id: bytes, index: int, chunk: bytes) -> bytes:
    """Return a chunk's message."""
    return Writer().raw(transfer_id).u32(index).raw(chunk).bytes()


def decode_chunk(data: bytes) -> tuple[bytes, int, bytes]:
    """Read a chunk's message.

    Raises:
        MalformedError: it is none.
    """
    reader = Reader(data, what="chunk", max_bytes=CHUNK_BYTES + 20)
    return reader.raw(16), reader.u32(), reader.rest()


def encode_end(transfer_id: bytes, reason: str) -> bytes:
    """Return the message that ends a transfer: `received`, or why not."""
    return payloads.encode_json({"transfer": transfer_id.hex(), "reason": reason})


def decode_end(data: bytes) -> tuple[bytes, str]:
    """Read the end of a transfer.

    Raises:
        PayloadError: it is none.
    """
    document = payloads.decode_object(data)
    return _transfer_id(document), payloads.text_of(document, "reason", most=64)


def _transfer_id(document: dict[str, payloads.Json]) -> bytes:
    try:
        return bytes.fromhex(payloads.text_of(document, "transfer", most=32))[:16]
    except ValueError as exc:
        raise PayloadError("member_invalid", "transfer must be a hexadecimal id") from exc

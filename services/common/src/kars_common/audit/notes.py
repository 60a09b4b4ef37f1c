"""Signed notes, log checkpoints and witness cosignatures, byte for byte as C2SP specifies them.

c2sp.org/signed-note, c2sp.org/tlog-checkpoint, c2sp.org/tlog-cosignature (Ed25519 forms). Knows nothing of
files or of the log. A note's text is never looked at before a signature by the expected key was verified.
"""

import base64
import binascii
import hashlib
import struct
import unicodedata
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from kars_common.errors import InvalidInputError

_ED25519 = 0x01
_COSIGNATURE = 0x04
_MAX_NOTE_BYTES = 64 * 1024
_MAX_SIGNATURES = 64


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A tree head: what a log says of itself, before or after a signature was checked."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """Return the note text (tlog-checkpoint, without extension lines)."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


@dataclass(frozen=True, kw_only=True)
class Cosignature:
    """What a witness said, and when it said it."""

    checkpoint: Checkpoint
    time_s: int


def check_name(name: str) -> str:
    """Return `name` if it can be an origin and a key name.

    Raises:
        InvalidInputError: `note_name_invalid`, it is empty or has a space, a plus or a control
            character.
    """
    if not name or "+" in name or any(c.isspace() or unicodedata.category(c) == "Cc" for c in name):
        raise InvalidInputError("note_name_invalid", f"not usable as a key name: {name[:100]!r}")
    return name


def public_bytes(key: Ed25519PublicKey) -> bytes:
    """Return the 32 raw bytes of a public key."""
    return key.public_bytes_raw()


def sign_checkpoint(checkpoint: Checkpoint, signer: Ed25519PrivateKey) -> bytes:
    """Return the checkpoint as a note signed by the log; the key name is the origin."""
    check_name(checkpoint.origin)
    text = checkpoint.text()
    blob = _key_id(checkpoint.origin, _ED25519, public_bytes(signer.public_key())) + signer.sign(
        text.encode()
    )
    return f"{text}\n{_line(checkpoint.origin, blob)}".encode()


def open_checkpoint(note: bytes, public_key: Ed25519PublicKey, origin: str | None = None) -> Checkpoint:
    """Verify a note against the log's key and return the checkpoint in it.

    Args:
        note: The signed note; other keys' signatures are ignored.
        public_key: The key that the caller trusts for this log.
        origin: What the origin must be; None takes the note's own (the key still decides).

    Raises:
        InvalidInputError: `note_malformed`, `note_unsigned` (no signature by this key),
            `note_signature_invalid`, `checkpoint_malformed` or `checkpoint_origin_mismatch`.
    """
    text, signatures = _split_note(note)
    name = text.split("\n", 1)[0] if origin is None else origin
    signature = _find(signatures, name, _key_id(name, _ED25519, public_bytes(public_key)))
    _verify(public_key, signature, text.encode())
    checkpoint = _parse_text(text)
    if checkpoint.origin != name:
        raise InvalidInputError(
            "checkpoint_origin_mismatch", f"checkpoint of {checkpoint.origin!r}, not {name!r}"
        )
    return checkpoint


def cosign(note: bytes, name: str, witness: Ed25519PrivateKey, time_s: int) -> bytes:
    """Return a witness's signature line for a note whose log signature the caller has verified."""
    text, _ = _split_note(note)
    _parse_text(text)
    signature = witness.sign(_cosigned_message(text, time_s))
    blob = _key_id(check_name(name), _COSIGNATURE, public_bytes(witness.public_key()))
    return _line(name, blob + struct.pack(">Q", time_s) + signature).encode()


def add_signature(note: bytes, line: bytes) -> bytes:
    """Return the note with one more signature line.

    Raises:
        InvalidInputError: `note_malformed`, when the result would not be a note.
    """
    joined = note + line
    _split_note(joined)
    return joined


def keep_signature(note: bytes, name: str) -> bytes:
    """Return the note with only the signature lines of one key name: what others added is dropped."""
    text, signatures = _split_note(note)
    return f"{text}\n{''.join(_line(other, blob) for other, blob in signatures if other == name)}".encode()


def signature_names(note: bytes) -> list[str]:
    """Return the key names of a note's signature lines (unverified)."""
    return [name for name, _ in _split_note(note)[1]]


def open_cosignature(note: bytes, name: str, witness_key: Ed25519PublicKey) -> Cosignature:
    """Verify a witness's cosignature on a note.

    Raises:
        InvalidInputError: as `open_checkpoint`.
    """
    text, signatures = _split_note(note)
    blob = _find(signatures, name, _key_id(name, _COSIGNATURE, public_bytes(witness_key)))
    if len(blob) != 72:
        raise InvalidInputError("note_signature_invalid", f"a cosignature has 72 bytes, got {len(blob)}")
    (time_s,) = struct.unpack(">Q", blob[:8])
    if time_s >= 1 << 63:
        raise InvalidInputError("note_signature_invalid", "cosignature time is out of range")
    _verify(witness_key, blob[8:], _cosigned_message(text, time_s))
    return Cosignature(checkpoint=_parse_text(text), time_s=time_s)


def verifier_key(name: str, key: Ed25519PublicKey, *, witness: bool = False) -> str:
    """Return the key in C2SP verifier form, `name+id+base64`."""
    kind = _COSIGNATURE if witness else _ED25519
    raw = public_bytes(key)
    encoded = base64.b64encode(bytes([kind]) + raw).decode()
    return f"{check_name(name)}+{_key_id(name, kind, raw).hex()}+{encoded}"


def parse_verifier_key(text: str) -> tuple[str, Ed25519PublicKey]:
    """Return name and key of a verifier key of either kind.

    Raises:
        InvalidInputError: `verifier_key_malformed`.
    """
    name, _, rest = text.strip().partition("+")
    key_id, _, encoded = rest.partition("+")
    try:
        blob = base64.b64decode(encoded, validate=True)
    except (ValueError, binascii.Error):
        blob = b""
    if (
        len(blob) != 33
        or blob[0] not in {_ED25519, _COSIGNATURE}
        or key_id != _key_id(name, blob[0], blob[1:]).hex()
    ):
        raise InvalidInputError("verifier_key_malformed", "expected <name>+<key id>+<base64 key>")
    return check_name(name), Ed25519PublicKey.from_public_bytes(blob[1:])


def _key_id(name: str, kind: int, raw: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + raw).digest()[:4]


def _line(name: str, blob: bytes) -> str:
    return f"\u2014 {name} {base64.b64encode(blob).decode()}\n"


def _cosigned_message(text: str, time_s: int) -> bytes:
    return f"cosignature/v1\ntime {time_s}\n{text}".encode()


def _split_note(note: bytes) -> tuple[str, list[tuple[str, bytes]]]:
    """Return the unverified text and the (key name, key id and signature) pairs of a note."""
    if len(note) > _MAX_NOTE_BYTES:
        raise InvalidInputError("note_malformed", f"note of {len(note)} bytes, at most {_MAX_NOTE_BYTES}")
    try:
        decoded = note.decode()
    except UnicodeDecodeError as exc:
        raise InvalidInputError("note_malformed", "note is not UTF-8") from exc
    if any(c < " " and c != "\n" for c in decoded):
        raise InvalidInputError("note_malformed", "note has a control character")
    text, separator, block = decoded.rpartition("\n\n")
    lines = block.split("\n")
    if not separator or lines.pop() != "" or not 0 < len(lines) <= _MAX_SIGNATURES:
        raise InvalidInputError("note_malformed", "expected text, an empty line and signature lines")
    return text + "\n", [_parse_line(line) for line in lines]


def _parse_line(line: str) -> tuple[str, bytes]:
    parts = line.split(" ")
    try:
        blob = base64.b64decode(parts[-1], validate=True)
    except (ValueError, binascii.Error) as exc:
        raise InvalidInputError("note_malformed", "signature is not base64") from exc
    if len(parts) != 3 or parts[0] != "\u2014" or not parts[1] or len(blob) < 5:
        raise InvalidInputError("note_malformed", "signature line is not '\u2014 <name> <signature>'")
    if base64.b64encode(blob).decode() != parts[-1]:
        raise InvalidInputError("note_malformed", "signature is not canonical base64")
    return parts[1], blob


def _find(signatures: list[tuple[str, bytes]], name: str, key_id: bytes) -> bytes:
    for other, blob in signatures:
        if other == name and blob[:4] == key_id:
            return blob[4:]
    raise InvalidInputError("note_unsigned", f"no signature by the expected key of {name[:100]!r}")


def _verify(key: Ed25519PublicKey, signature: bytes, message: bytes) -> None:
    try:
        key.verify(signature, message)
    except InvalidSignature as exc:
        raise InvalidInputError("note_signature_invalid", "signature does not verify") from exc


def _parse_text(text: str) -> Checkpoint:
    lines = text.split("\n")
    malformed = InvalidInputError("checkpoint_malformed", "expected origin, size and root hash")
    if len(lines) < 4 or not all(lines[:-1]) or lines[-1] != "":
        raise malformed
    origin, size, root = lines[:3]
    if not (size.isascii() and size.isdigit() and len(size) <= 19 and str(int(size)) == size):
        raise malformed
    try:
        digest = base64.b64decode(root, validate=True)
    except (ValueError, binascii.Error) as exc:
        raise malformed from exc
    if len(digest) != 32 or base64.b64encode(digest).decode() != root:
        raise malformed
    return Checkpoint(origin=origin, size=int(size), root=digest)

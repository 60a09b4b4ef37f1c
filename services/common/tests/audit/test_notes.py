"""Notes, checkpoints and cosignatures against the examples in the C2SP documents, and against forgers."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from kars_common.audit import notes
from kars_common.errors import InvalidInputError

# c2sp.org/signed-note, test vectors of the Go implementation (golang.org/x/mod/sumdb/note).
PETER_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"

# c2sp.org/tlog-checkpoint and c2sp.org/tlog-cosignature, the documents' example.
SOFA_TEXT = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
SOFA_NOTE = (
    f"{SOFA_TEXT}\n"
    "— example.com/behind-the-sofa "
    "Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    "— witness.example.com/w1 "
    "jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
).encode()

LOG = Ed25519PrivateKey.from_private_bytes(b"log key for tests, 32 bytes long")
WITNESS = Ed25519PrivateKey.from_private_bytes(b"witness key, also 32 bytes long!")
HEAD = notes.Checkpoint(origin="kars.local/ns/a/sandbox/b", size=7, root=bytes(range(32)))


def reason(note: bytes, origin: str | None = None) -> str:
    with pytest.raises(InvalidInputError) as caught:
        notes.open_checkpoint(note, LOG.public_key(), origin)
    return caught.value.reason


def test_published_verifier_key_parses_and_renders_back() -> None:
    name, key = notes.parse_verifier_key(PETER_KEY)
    assert name == "PeterNeumann"
    assert notes.verifier_key(name, key) == PETER_KEY


def test_published_note_verifies() -> None:
    note = (
        "If you think cryptography is the answer to your problem,\n"
        "then you don't know what your problem is.\n\n"
        "— PeterNeumann "
        "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
    ).encode()
    _, key = notes.parse_verifier_key(PETER_KEY)
    with pytest.raises(InvalidInputError) as caught:
        # The signature is found and verifies; the text is no checkpoint, and that is what is refused.
        notes.open_checkpoint(note, key, "PeterNeumann")
    assert caught.value.reason == "checkpoint_malformed"
    with pytest.raises(InvalidInputError) as caught:
        notes.open_checkpoint(note.replace(b"answer", b"Answer"), key, "PeterNeumann")
    assert caught.value.reason == "note_signature_invalid"


def test_checkpoint_text_is_the_documents_example() -> None:
    root = base64.b64decode("CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=")
    head = notes.Checkpoint(origin="example.com/behind-the-sofa", size=20852163, root=root)
    assert head.text() == SOFA_TEXT


def test_the_documents_cosigned_example_parses_and_its_unknown_keys_count_for_nothing() -> None:
    assert notes.signature_names(SOFA_NOTE) == ["example.com/behind-the-sofa", "witness.example.com/w1"]
    assert reason(SOFA_NOTE) == "note_unsigned"


def test_signed_checkpoint_opens_with_its_key_only() -> None:
    note = notes.sign_checkpoint(HEAD, LOG)
    assert notes.open_checkpoint(note, LOG.public_key()) == HEAD
    assert notes.open_checkpoint(note, LOG.public_key(), HEAD.origin) == HEAD
    with pytest.raises(InvalidInputError) as caught:
        notes.open_checkpoint(note, WITNESS.public_key())
    assert caught.value.reason == "note_unsigned"
    assert reason(note, "kars.local/ns/a/sandbox/c") == "note_unsigned"


def test_cosignature_rides_beside_the_logs_signature() -> None:
    note = notes.sign_checkpoint(HEAD, LOG)
    both = notes.add_signature(note, notes.cosign(note, "kars.local/witness", WITNESS, 1700000000))
    assert notes.open_checkpoint(both, LOG.public_key()) == HEAD
    cosignature = notes.open_cosignature(both, "kars.local/witness", WITNESS.public_key())
    assert cosignature == notes.Cosignature(checkpoint=HEAD, time_s=1700000000)


def test_a_log_signature_is_no_cosignature() -> None:
    note = notes.sign_checkpoint(HEAD, LOG)
    with pytest.raises(InvalidInputError) as caught:
        notes.open_cosignature(note, HEAD.origin, LOG.public_key())
    assert caught.value.reason == "note_unsigned"


@given(st.data())
def test_any_changed_byte_of_a_note_is_refused(data: st.DataObject) -> None:
    note = bytearray(notes.sign_checkpoint(HEAD, LOG))
    place = data.draw(st.integers(0, len(note) - 1))
    note[place] ^= data.draw(st.integers(1, 255))
    assert reason(bytes(note), HEAD.origin)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_with_a_reason(blob: bytes) -> None:
    assert reason(blob)


@pytest.mark.parametrize("size", ["007", "-1", "+7", "7 ", "\u0667", "1e3", "", "9" * 20])
def test_sizes_have_one_spelling(size: str) -> None:
    text = HEAD.text().replace("\n7\n", f"\n{size}\n")
    blob = notes._key_id(HEAD.origin, 1, notes.public_bytes(LOG.public_key())) + LOG.sign(text.encode())
    assert reason(f"{text}\n{notes._line(HEAD.origin, blob)}".encode(), HEAD.origin) == "checkpoint_malformed"


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "a\u2003b"])
def test_names_that_could_forge_lines_are_refused(name: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        notes.check_name(name)
    assert caught.value.reason == "note_name_invalid"


@pytest.mark.parametrize("text", ["", "a+b+c", f"{PETER_KEY}x", PETER_KEY.replace("c74f", "c74e")])
def test_wrong_verifier_keys_are_refused(text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        notes.parse_verifier_key(text)
    assert caught.value.reason == "verifier_key_malformed"

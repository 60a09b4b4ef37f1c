"""Statements and proofs as bytes: only the one form that the controller signs is ever believed."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from kars.mesh.v1 import identity_pb2
from kars_common.errors import UnauthenticatedError
from kars_relay.identity import check_connect_proof, connect_message, verify_statement
from kars_relay.identity.statements import PREFIX, TrustedKey
from kars_relay_testkit import MeshWorld

WORLD = MeshWorld()
PEER = WORLD.peer("alice")
KEY = WORLD.statement_key_message
KEYS = {KEY.key_id: TrustedKey(key=WORLD.statement_key.public_key(), trust_domain="kars.local")}
GOOD = json.loads(PEER.statement.statement)


def signed(statement: bytes) -> identity_pb2.SignedStatement:
    signature = WORLD.statement_key.sign(PREFIX + statement)
    return identity_pb2.SignedStatement(statement=statement, signature=signature, key_id=KEY.key_id)


def believed(statement: identity_pb2.SignedStatement) -> bool:
    try:
        verify_statement(statement, KEYS)
    except UnauthenticatedError:
        return False
    return True


def test_an_honest_statement_is_believed() -> None:
    statement = verify_statement(PEER.statement, KEYS)
    assert statement.peer == PEER.name
    assert statement.identity_key_raw == PEER.identity.public_key().public_bytes_raw()


@given(st.binary(max_size=300))
def test_signed_rubbish_is_refused(statement: bytes) -> None:
    assert not believed(signed(statement))


@given(
    st.sampled_from(sorted(GOOD)),
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=60), st.lists(st.integers())
    ),
)
def test_a_member_with_any_other_value_is_refused_or_means_what_it_says(name: str, value: object) -> None:
    changed = json.dumps(GOOD | {name: value}, separators=(",", ":"), sort_keys=True).encode()
    if believed(signed(changed)):
        assert (name, type(value)) in {("serial", int), (name, type(GOOD[name]))}


@given(st.data())
def test_a_statement_with_one_byte_changed_is_refused(data: st.DataObject) -> None:
    raw = bytearray(PEER.statement.statement)
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    forged = identity_pb2.SignedStatement(
        statement=bytes(raw), signature=PEER.statement.signature, key_id=KEY.key_id
    )
    assert not believed(forged)


def test_other_spellings_of_the_same_statement_are_refused() -> None:
    text = PEER.statement.statement
    for other in (
        text.replace(b":", b": ", 1),
        json.dumps(dict(reversed(GOOD.items())), separators=(",", ":")).encode(),
        text + b"\n",
        text.replace(b'"serial":', b'"serial":1,"serial":'),
    ):
        assert other != text
        assert not believed(signed(other))


def test_a_key_speaks_of_its_own_trust_domain_only() -> None:
    elsewhere = {KEY.key_id: TrustedKey(key=WORLD.statement_key.public_key(), trust_domain="east.example")}
    with pytest.raises(UnauthenticatedError, match="may not speak of"):
        verify_statement(PEER.statement, elsewhere)


@given(nonce=st.binary(min_size=32, max_size=32), relay=st.text(max_size=20), peer=st.text(max_size=20))
def test_a_proof_holds_for_one_nonce_one_relay_and_one_peer(nonce: bytes, relay: str, peer: str) -> None:
    key = Ed25519PrivateKey.generate()
    proof = key.sign(connect_message(b"n" * 32, "r", "p"))
    if (nonce, relay, peer) != (b"n" * 32, "r", "p"):
        with pytest.raises(UnauthenticatedError):
            check_connect_proof(key.public_key(), proof, nonce=nonce, relay=relay, peer=peer)

"""Every decoder of a stranger's bytes: any input ends in a result or in an error of ours, within limits."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kars_sdk.mesh import knock as knocks
from kars_sdk.mesh import padding, pq, statements, trust
from kars_sdk.mesh.codec import Reader, Writer
from kars_sdk.mesh.errors import IdentityError, MalformedError, MeshError
from kars_sdk.mesh.names import peer_name, short_name, trust_domain
from kars_sdk.mesh.session import MAX_MESSAGE_BYTES, Session
from kars_sdk.mesh.sessions import MAX_PAYLOAD_BYTES
from kars_sdk.mesh.statements import SignedStatement, TrustKeys
from kars_sdk.mesh.testing import Agent, Authority, name

SHARED = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SHARED
@given(st.binary(max_size=4096))
@example(b"")
@example(b"\x01" + b"\xff" * 4)
@example(b"\x02" + bytes(104))
@example(b"\x03" + bytes(80))
def test_payloads_of_any_bytes_are_refused_with_a_reason(bob: Agent, data: bytes) -> None:
    with pytest.raises(MeshError) as refused:
        bob.sessions.open(data, sender=name("alice"))
    assert refused.value.reason


@SHARED
@given(st.binary(max_size=3000), st.integers(0, 2000))
def test_knocks_of_any_bytes_are_refused(alice: Agent, bob: Agent, data: bytes, keep: int) -> None:
    if not alice.sessions.has_session(bob.name):
        alice.sessions.start(bob.bundle(), bob.name, b"hello")
    good = alice.sessions.of(bob.name)[0].knock[4:-64]
    for candidate in (data, good[: keep % len(good)] + data):
        try:
            knock = knocks.read(candidate, bytes(64))
        except (MalformedError, IdentityError):
            continue
        with pytest.raises(MeshError):
            knocks.verify(
                knock, own=bob.name, own_key=bob.identity.public, trust=bob.authority.trust, now=2e9,
                transport_sender=None,
            )  # fmt: skip


@pytest.mark.parametrize("length", [MAX_PAYLOAD_BYTES + 1, 16 * 1024 * 1024])
def test_oversized_payloads_are_refused_before_they_are_read(bob: Agent, length: int) -> None:
    for kind in (1, 2, 3):
        with pytest.raises(MalformedError) as refused:
            bob.sessions.open(bytes((kind,)) + bytes(length), sender=name("alice"))
        assert refused.value.reason == "too_large"


def test_an_oversized_message_is_refused(alice: Agent, bob: Agent) -> None:
    bob.sessions.open(alice.sessions.start(bob.bundle(), bob.name, b"x"), sender=alice.name)
    session = bob.sessions.of(alice.name)[0]
    with pytest.raises(MalformedError):
        session.decrypt(session.session_id + bytes(MAX_MESSAGE_BYTES))
    with pytest.raises(MalformedError):
        session.encrypt(bytes(2 * 1024 * 1024))


@SHARED
@given(st.binary(max_size=300))
def test_rejections_of_any_bytes_are_refused(bob: Agent, data: bytes) -> None:
    with pytest.raises(MeshError):
        knocks.read_rejection(data, own=bob.name, peer=name("alice"), peer_key=bytes(32))


@SHARED
@given(st.binary(max_size=5000))
def test_statements_of_any_bytes_are_refused_even_when_signed(authority: Authority, data: bytes) -> None:
    with pytest.raises(IdentityError) as refused:
        authority.trust.verify(authority.sign(data), now=1.8e9)
    assert refused.value.reason in {"statement_malformed", "statement_forged", "peer_name_invalid"}


@SHARED
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda c: st.lists(c) | st.dictionaries(st.text(), c),
        max_leaves=8,
    )
)
def test_json_files_of_any_shape_are_refused_or_read(document: object) -> None:
    data = json.dumps(document).encode()
    for read in (TrustKeys.from_json, trust.TrustPolicy.from_json):
        with contextlib.suppress(IdentityError):
            read(data)


def test_the_trust_keys_file_is_read(authority: Authority, alice: Agent) -> None:
    keys = TrustKeys.from_json(authority.trust_json())
    assert keys.verify(alice.statement, now=time.time()).peer == alice.name
    with pytest.raises(IdentityError):
        TrustKeys.from_json(b" " * (statements.MAX_TRUST_FILE_BYTES + 1))


def test_a_key_of_another_trust_domain_does_not_speak_of_ours(alice: Agent) -> None:
    foreign = Authority("other.test")
    both = TrustKeys(
        [
            statements.TrustKey(public_key=foreign.public, trust_domain="other.test"),
            statements.TrustKey(public_key=alice.authority.public, trust_domain="kars.test"),
        ]
    )
    with pytest.raises(IdentityError) as refused:
        both.verify(foreign.statement(alice.name, alice.identity.public), now=1.8e9)
    assert refused.value.reason == "statement_foreign_domain"
    guest = name("guest", domain="other.test")
    statement = foreign.statement(guest, alice.identity.public, not_before=0, not_after=2e9)
    assert both.verify(statement, now=1.8e9).peer == guest


def test_statements_with_members_missing_twice_or_unknown_are_refused(
    authority: Authority, alice: Agent
) -> None:
    good = alice.statement.statement
    for bad in (
        good.replace(b'"serial":1', b'"serial":1,"serial":2'),
        good.replace(b'"serial":1', b'"serial":1.5'),
        good.replace(b'"serial":1', b'"extra":0,"serial":1'),
        good.replace(b',"serial":1', b""),
        good.replace(b"/sandbox/alice", b"/sandbox/Alice"),
        good.replace(b'Z"', b'"'),
    ):
        assert bad != good
        with pytest.raises(IdentityError):
            authority.trust.verify(authority.sign(bad), now=1.8e9)


@SHARED
@given(st.binary(max_size=3000), st.integers(0, 255))
def test_post_quantum_parts_of_any_bytes_are_read_or_refused(data: bytes, kind: int) -> None:
    reader = Reader(data, what="body", max_bytes=4096)
    with contextlib.suppress(MalformedError):
        pq.decode(reader, kind=kind)


@SHARED
@given(st.text(max_size=600))
@example("spiffe://kars.test/ns/a/sandbox/b/../c")
@example("spiffe://kars.test/ns/a/sandbox/")
@example("spiffe://kars.test/ns/a/sandbox/b\n")
@example("spiffe:///ns/a/sandbox/b")
def test_names_of_any_text_are_refused(text: str) -> None:
    with pytest.raises(IdentityError):
        peer_name(text)


def test_good_names_are_taken_apart() -> None:
    peer = peer_name("spiffe://kars.local/ns/team-a/sandbox/writer-1")
    assert (trust_domain(peer), short_name(peer)) == ("kars.local", "writer-1")


@given(st.integers(0, 1 << 40))
def test_padding_grows_by_at_most_an_eighth_and_never_shrinks(length: int) -> None:
    padded = padding.padded_length(length)
    assert length <= padded <= max(padding.MIN_BYTES, length * 9 // 8)
    assert padding.padded_length(padded) == padded
    assert padding.padded_length(length + 1) >= padded


@given(st.lists(st.binary(max_size=50)), st.integers(0, 2**32 - 1), st.text(max_size=20))
def test_what_the_codec_writes_it_reads(fields: list[bytes], number: int, text: str) -> None:
    writer = Writer().u32(number).text(text)
    for field in fields:
        writer.variable(field)
    reader = Reader(writer.bytes(), what="test", max_bytes=1 << 20)
    assert (reader.u32(), reader.text(100)) == (number, text)
    assert [reader.variable(50) for _ in fields] == fields
    reader.end()


def test_the_codec_refuses_what_is_not_there(tmp_path: Path) -> None:
    cases: list[tuple[bytes, Callable[[Reader], object]]] = [
        (b"\x00\x00\x00\x05abc", lambda r: r.variable(10)),
        (b"\x00\x00\x00\x0babcdefghijk", lambda r: r.variable(10)),
        (b"\x02", lambda r: r.flag()),
        (b"\x00\x00\x00\x01\xff", lambda r: r.text(10)),
        (b"a", lambda r: r.end()),
    ]
    for data, read in cases:
        with pytest.raises(MalformedError):
            read(Reader(data, what="test", max_bytes=100))


@SHARED
@given(st.binary(max_size=400))
def test_a_damaged_session_record_is_refused(data: bytes) -> None:
    with pytest.raises((MalformedError, ValueError, IdentityError)):
        Session.load(b"\x01" + data)


def test_a_statement_is_a_value() -> None:
    signed = SignedStatement(statement=b"", signature=b"", key_id="")
    assert dataclasses.replace(signed, key_id="x") != signed

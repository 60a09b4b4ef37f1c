"""A signed allowlist has one form; every other spelling of it is refused."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from kars_common.errors import KarsError, PermissionDeniedError
from kars_common.policy.signing import key_id
from kars_egress.policy.artefacts import (
    Allowlist,
    digest,
    layer_digest,
    manifest,
    parse,
    serialise,
    sign,
    verify,
)

ENDPOINTS = st.tuples(st.sampled_from(["a.test", "b.a.test", "c-d.test", "x1.test"]), st.integers(1, 65535))
ALLOWLISTS = st.builds(
    lambda generation, endpoints: Allowlist(generation, tuple(sorted(set(endpoints)))),
    st.integers(1, 10**17),
    st.lists(ENDPOINTS, max_size=6),
)


@given(ALLOWLISTS)
def test_what_is_written_is_read(allowlist: Allowlist) -> None:
    assert parse(serialise(allowlist)) == allowlist


@given(ALLOWLISTS, st.integers(0, 400), st.binary(min_size=1, max_size=3))
def test_any_other_bytes_are_refused(allowlist: Allowlist, place: int, noise: bytes) -> None:
    data = serialise(allowlist)
    changed = data[:place] + noise + data[place:]
    try:
        found = parse(changed)
    except KarsError:
        return
    assert serialise(found) == changed
    assert found != allowlist


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(KarsError):
        parse(data)
    with pytest.raises(KarsError):
        layer_digest(data)


GOOD = serialise(Allowlist(3, (("a.test", 443), ("b.test", 8443))))


@pytest.mark.parametrize(
    "data",
    [
        GOOD.replace(b"\n", b"\r\n"),
        GOOD.replace(b"a.test", b"A.test"),
        GOOD.replace(b"a.test", b"z.test"),
        GOOD.replace(b"b.test", b"a.test").replace(b"8443", b"443"),
        GOOD.replace(b"generation: 3", b"generation: 03"),
        GOOD.replace(b"generation: 3", b"generation: 0"),
        GOOD.replace(b"8443", b"70000"),
        GOOD + b"\n",
        GOOD[:-1],
        GOOD.replace(b"a.test", b"10.0.0.1"),
        GOOD.replace(b"a.test", b"a.tk"),
        b"# c\n" + GOOD,
    ],
)
def test_near_misses_are_refused(data: bytes) -> None:
    with pytest.raises(KarsError):
        parse(data)


def test_only_a_trusted_signature_over_these_bytes_counts() -> None:
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    trusted = {key_id(key.public_key()): key.public_key()}
    data = manifest(GOOD)
    assert layer_digest(data) == digest(GOOD)
    verify(data, sign(data, key), trusted)
    for document in (
        sign(data, other),
        sign(data + b" ", key),
        b"{}",
        b"[]",
        b"\xff",
        b'{"keyId": 1, "signature": 2}',
    ):
        with pytest.raises(PermissionDeniedError):
            verify(data, document, trusted)

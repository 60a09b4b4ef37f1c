"""Keys of issuers: fetched rarely, whatever kids strangers invent, and kept while an issuer is away."""

# ruff: noqa: PT017  # property tests: an error with its reason, or a result; both are right

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kars_a2a_gateway.callers.key_sets import KeySets, parse_key_set
from kars_a2a_gateway.outgoing.client import Answer
from kars_a2a_gateway.policy.exposures import Issuer
from kars_a2a_gateway_testkit.outsiders import TokenIssuer
from kars_common.errors import KarsError, UnavailableError


class Server:
    """An issuer's endpoint, and the clock."""

    def __init__(self) -> None:
        self.body = TokenIssuer().key_set("k1").encode()
        self.away = False
        self.now = 1000.0

    async def request(self, *_: object, **__: object) -> Answer:
        if self.away:
            raise UnavailableError("target_unreachable", "away")
        return Answer(status=200, body=self.body)


ISSUER = Issuer(
    issuer="https://issuer.example",
    audiences=frozenset(("a",)),
    algorithms=("ES256",),
    jwks_uri="https://issuer.example/keys",
    jwks="",
    skew_s=30,
    max_lifetime_s=0,
    open_id_connect_url="",
    token_url="",
)


def key_sets(server: Server) -> KeySets:
    return KeySets(server, clock_s=lambda: server.now)  # type: ignore[arg-type]  # the part that is used


async def test_unknown_kids_cause_one_fetch_in_a_while() -> None:
    server = Server()
    keys = key_sets(server)
    for number in range(100):
        assert await keys.find(ISSUER, f"invented{number}") is None
    assert keys.fetches == 1
    assert await keys.find(ISSUER, "k1") is not None
    server.now += 20
    server.body = TokenIssuer().key_set("k2").encode()
    assert await keys.find(ISSUER, "k2") is not None, "a rotation is noticed"
    assert keys.fetches == 2
    assert await keys.find(ISSUER, "k1") is None, "a key that was taken back is gone"


async def test_an_issuer_that_is_away_keeps_its_keys_for_a_while() -> None:
    server = Server()
    keys = key_sets(server)
    await keys.find(ISSUER, "k1")
    server.away = True
    server.now += 3600
    assert await keys.find(ISSUER, "k1") is not None
    server.now += 7 * 3600
    with pytest.raises(UnavailableError):
        await keys.find(ISSUER, "k1")


async def test_without_any_keys_nobody_is_verified() -> None:
    server = Server()
    server.away = True
    with pytest.raises(UnavailableError):
        await key_sets(server).find(ISSUER, "k1")


def test_keys_that_must_not_verify_are_left_out() -> None:
    good = orjson.loads(TokenIssuer().key_set("good"))["keys"][0]
    entries = [
        good,
        {**good, "kid": "enc", "use": "enc"},
        {**good, "kid": "private", "d": "AAAA"},
        {"kty": "oct", "kid": "oct", "k": "c2VjcmV0"},
        {"kty": "RSA", "kid": "small", "n": "AQAB", "e": "AQAB"},
        {key: value for key, value in good.items() if key != "kid"},
        "text",
    ]
    assert list(parse_key_set(orjson.dumps({"keys": entries}))) == ["good"]


@given(st.binary(max_size=300))
def test_any_bytes_are_keys_or_a_reason(raw: bytes) -> None:
    try:
        parse_key_set(raw)
    except KarsError as error:
        assert error.reason

"""Settings, rates, the admin server's table, and readers of untrusted bytes."""

# ruff: noqa: PT017  # property tests: an error with its reason, or a result; both are right

import base64
from pathlib import Path
from typing import Any

import orjson
import pytest
from a2a.types import SendMessageRequest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from kars.audit.v1 import audit_pb2_grpc
from kars.policy.v1 import policy_pb2_grpc
from kars_a2a_gateway.authorization import TABLE
from kars_a2a_gateway.callers.tokens import _parts
from kars_a2a_gateway.cards.key_ring import KeyRing
from kars_a2a_gateway.controller import EnforcementServicer
from kars_a2a_gateway.errors import A2AError, Kind
from kars_a2a_gateway.limits.rates import Rates
from kars_a2a_gateway.operations.admission import call_id
from kars_a2a_gateway.settings import GatewaySettings
from kars_a2a_gateway.wire import negotiation, reading
from kars_common.audit import AuditLog, AuditLogServicer
from kars_common.errors import KarsError, UnauthenticatedError
from kars_common.rpc import RpcServer
from kars_common.settings import load

BOUNDS = reading.MessageBounds(max_json_depth=48, max_parts=4)


async def test_every_method_of_the_admin_server_has_a_rule(tmp_path: Path) -> None:
    log = AuditLog.open(tmp_path / "audit", "test/log", Ed25519PrivateKey.generate())
    server = RpcServer(None, TABLE, "127.0.0.1:0", require_client_certificate=False)
    servicer = EnforcementServicer(lambda: pytest.fail("not called"))
    server.add(policy_pb2_grpc.add_PolicyEnforcementServicer_to_server, servicer)
    server.add(audit_pb2_grpc.add_AuditLogServicer_to_server, AuditLogServicer(log))
    assert server.ungoverned() == (frozenset(), frozenset())
    await log.close()


def test_defaults_are_what_the_readme_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {
        "STATE_DIR": str(tmp_path),
        "PUBLIC_URL": "https://gateway.example",
        "POLICY_KEYS_FILE": "keys.json",
        "TLS_CERT_FILE": "c",
        "TLS_KEY_FILE": "k",
    }.items():
        monkeypatch.setenv(f"KARS_A2A_GATEWAY_{name}", value)
    settings = load(GatewaySettings)
    assert not settings.allow_loopback_targets
    assert not settings.plaintext
    assert (settings.max_body_bytes, settings.max_json_depth, settings.max_parts) == (1024 * 1024, 48, 128)
    assert (settings.caller_requests_per_minute, settings.max_streams) == (600, 4096)
    assert settings.push_max_age_s == 24 * 3600


@pytest.mark.parametrize(
    "wrong",
    [
        {"PLAINTEXT": "true"},
        {"TLS_KEY_FILE": ""},
        {"MAX_BODY_BYTES": str(5 * 1024 * 1024)},
        {"PUBLIC_URL": "https://gateway.example/path"},
        {"RATE": "5"},
    ],
)
def test_wrong_settings_stop_the_start(monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str]) -> None:
    good = {
        "STATE_DIR": "s",
        "PUBLIC_URL": "https://gateway.example",
        "POLICY_KEYS_FILE": "keys.json",
        "TLS_CERT_FILE": "c",
        "TLS_KEY_FILE": "k",
    }
    for name, value in (good | wrong).items():
        monkeypatch.setenv(f"KARS_A2A_GATEWAY_{name}", value)
    with pytest.raises(KarsError):
        load(GatewaySettings)


def test_a_bucket_fills_and_empties() -> None:
    now = [0.0]
    rates = Rates(lambda: now[0])
    assert [rates.take("a", 1.0, 2) for _ in range(3)] == [0.0, 0.0, 1.0]
    assert rates.take("b", 1.0, 2) == 0.0
    now[0] = 1.0
    assert rates.take("a", 1.0, 2) == 0.0


def test_many_names_cannot_push_out_a_bucket_that_counts() -> None:
    now = [0.0]
    rates = Rates(lambda: now[0], max_buckets=10)
    for _ in range(3):
        rates.take("victim", 0.1, 2)
    for number in range(1000):
        rates.take(f"invented{number}", 0.1, 2)
    assert rates.take("victim", 0.1, 2) > 0


@given(st.binary(max_size=300))
def test_any_body_is_a_request_or_an_error(raw: bytes) -> None:
    try:
        request = reading.parse_message(reading.parse_document(raw, BOUNDS), SendMessageRequest())
        reading.check_request(request, BOUNDS)
    except A2AError as error:
        assert error.kind in (Kind.JSON_PARSE_ERROR, Kind.INVALID_PARAMS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["message", "parts", "text", "role", "metadata", "data", "configuration", "raw"]),
        inner,
        max_size=4,
    ),
    max_leaves=25,
)  # fmt: skip


@given(JSON)
def test_any_document_is_a_request_or_an_error(document: Any) -> None:
    try:
        request = reading.parse_message(document, SendMessageRequest())
        reading.check_request(request, BOUNDS)
    except A2AError as error:
        assert error.kind is Kind.INVALID_PARAMS
    else:
        assert request.message.parts


@given(st.text(max_size=60))
def test_any_token_is_parted_or_refused(token: str) -> None:
    try:
        _parts(token)
    except UnauthenticatedError as error:
        assert error.reason == "token_malformed"


def test_a_deep_token_is_refused() -> None:
    deep = base64.urlsafe_b64encode(b'{"a":' * 1000 + b"1" + b"}" * 1000).decode().rstrip("=")
    with pytest.raises(UnauthenticatedError):
        _parts(f"{deep[:6000]}.e30.x")


@given(st.text(max_size=20))
def test_only_1_0_is_spoken(version: str) -> None:
    try:
        negotiation.check_version(version)
    except A2AError as error:
        assert error.kind is Kind.VERSION_NOT_SUPPORTED
    else:
        assert version.startswith("1.0") or version.lstrip("0").startswith("1.0") or not version.isascii()


def test_call_ids_sort_by_time() -> None:
    ids = [call_id(1_700_000_000 + number) for number in range(50)]
    assert ids == sorted(ids)
    assert {len(one) for one in ids} == {26}


def test_keys_rotate_by_name_and_stay_published(tmp_path: Path) -> None:
    own = KeyRing(None, tmp_path / "state")
    assert own.active.kid == KeyRing(None, tmp_path / "state").active.kid, "the key made here is kept"
    folder = tmp_path / "keys"
    folder.mkdir()
    pem = (tmp_path / "state" / "card-key.pem").read_bytes()
    (folder / "2026-01.pem").write_bytes(pem)
    (folder / "2026-01.pem").chmod(0o600)
    ring = KeyRing(folder, tmp_path)
    assert (ring.active.kid, ring.refresh()) == ("2026-01", False)
    (folder / "2026-02.pem").write_bytes(pem)
    (folder / "2026-02.pem").chmod(0o644)
    assert not ring.refresh(), "a key that others can read is not taken"
    (folder / "2026-02.pem").chmod(0o600)
    assert ring.refresh()
    assert ring.active.kid == "2026-02"
    published = orjson.loads(orjson.dumps(ring.key_set()))["keys"]
    assert [key["kid"] for key in published] == ["2026-01", "2026-02"]
    assert all("d" not in key for key in published)

"""Bundles as bytes: one payload a bundle, and each way of lying about it refused with its own reason."""

import base64
import hashlib
import json
import string
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from kars.policy.v1 import policy_pb2
from kars_common import policy
from kars_common.errors import InvalidInputError
from kars_common.policy import PolicyRefusedError

KEY = Ed25519PrivateKey.generate()
KEYS = {policy.key_id(KEY.public_key()): KEY.public_key()}
SANDBOX = ("team", "writer")


def bundle_of(version: int = 7, **fields: Any) -> policy_pb2.PolicyBundle:
    bundle = policy_pb2.PolicyBundle(
        sandbox=policy_pb2.SandboxRef(namespace="team", name="writer"), version=version, **fields
    )
    bundle.issued_at.FromDatetime(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    return bundle


def signed_json(document: Any) -> policy_pb2.SignedBundle:
    return policy.sign(rfc8785.dumps(document), KEY)


def document_of(bundle: policy_pb2.PolicyBundle) -> Any:
    return json.loads(policy.canonical_payload(bundle))


def refusal(signed: policy_pb2.SignedBundle, *, min_version: int = 1, keys: Any = None) -> str:
    with pytest.raises(PolicyRefusedError) as caught:
        policy.verify(signed, KEYS if keys is None else keys, SANDBOX, min_version)
    return caught.value.reason


def test_payload_is_canonical_json_in_the_protobuf_mapping() -> None:
    bundle = bundle_of(
        inference=policy_pb2.InferenceRules(
            token_budget=policy_pb2.TokenBudget(per_request_tokens=2**60, daily_tokens=5)
        ),
        governance=policy_pb2.GovernanceRules(default_verdict=policy_pb2.VERDICT_DENY, trust_threshold=500),
    )
    assert policy.canonical_payload(bundle) == (
        b'{"governance":{"defaultVerdict":"VERDICT_DENY","trustThreshold":500},'
        b'"inference":{"tokenBudget":{"dailyTokens":"5","perRequestTokens":"1152921504606846976"}},'
        b'"issuedAt":"2026-01-02T03:04:05Z","sandbox":{"name":"writer","namespace":"team"},"version":"7"}'
    )


def test_signed_bundle_verifies_to_the_same_bundle() -> None:
    bundle = bundle_of()
    assert policy.verify(policy.sign(policy.canonical_payload(bundle), KEY), KEYS, SANDBOX, 7) == bundle


def test_payload_changed_after_signing_is_signature_invalid() -> None:
    signed = policy.sign(policy.canonical_payload(bundle_of()), KEY)
    signed.payload = signed.payload.replace(b'"7"', b'"8"')
    signed.digest = policy.digest(signed.payload)
    assert refusal(signed) == "signature_invalid"


def test_signature_of_another_key_is_refused_even_under_a_trusted_name() -> None:
    signed = policy.sign(policy.canonical_payload(bundle_of()), Ed25519PrivateKey.generate())
    assert refusal(signed) == "signature_invalid"
    signed.key_id = next(iter(KEYS))
    assert refusal(signed) == "signature_invalid"


def test_signature_over_the_bare_payload_is_refused() -> None:
    signed = policy.sign(policy.canonical_payload(bundle_of()), KEY)
    signed.signature = KEY.sign(signed.payload)
    assert refusal(signed) == "signature_invalid"


@pytest.mark.parametrize("signature", [b"", b"\x00" * 64, b"short"])
def test_absent_signature_is_refused(signature: bytes) -> None:
    signed = policy.sign(policy.canonical_payload(bundle_of()), KEY)
    signed.signature = signature
    assert refusal(signed) == "signature_invalid"


def test_no_trusted_keys_trust_nothing() -> None:
    assert refusal(policy.sign(policy.canonical_payload(bundle_of()), KEY), keys={}) == "signature_invalid"


def test_wrong_digest_is_refused_although_the_signature_holds() -> None:
    signed = policy.sign(policy.canonical_payload(bundle_of()), KEY)
    signed.digest = policy.digest(b"other")
    assert refusal(signed) == "digest_mismatch"


def test_bundle_of_another_sandbox_is_refused() -> None:
    document = document_of(bundle_of()) | {"sandbox": {"name": "other", "namespace": "team"}}
    assert refusal(signed_json(document)) == "wrong_sandbox"


def test_lower_version_is_a_rollback() -> None:
    signed = policy.sign(policy.canonical_payload(bundle_of(version=6)), KEY)
    assert refusal(signed, min_version=7) == "version_rollback"


@pytest.mark.parametrize("version", [0, -1])
def test_version_below_one_is_refused_whatever_is_in_force(version: int) -> None:
    signed = policy.sign(policy.canonical_payload(bundle_of(version=version)), KEY)
    assert refusal(signed, min_version=0) == "version_rollback"


@pytest.mark.parametrize(
    "extra",
    [
        {"futureControl": {"strict": True}},
        {"governance": {"defaultVerdict": "VERDICT_MAYBE"}},
        {"governance": {"rules": [{"name": "x", "quarantine": {}}]}},
    ],
)
def test_control_that_is_not_understood_refuses_the_whole_bundle(extra: Any) -> None:
    assert refusal(signed_json(document_of(bundle_of()) | extra)) == "unknown_field"


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda p: b" " + p,
        lambda p: p.replace(b'"version":"7"', b'"version":7'),
        lambda p: p.replace(b'"issuedAt"', b'"issued_at"'),
        lambda p: p[:-1] + b',"limits":null}',
        lambda p: p.replace(b'"name":"writer"', b'"name":"\\u0077riter"'),
        lambda p: p.replace(b'"issuedAt":"2026-01-02T03:04:05Z"', b'"issuedAt":"2026-01-02T04:04:05+01:00"'),
        lambda p: b"\xef\xbb\xbf" + p,
    ],
)
def test_second_spelling_of_a_bundle_is_refused(rewrite: Any) -> None:
    payload = rewrite(policy.canonical_payload(bundle_of()))
    assert refusal(policy.sign(payload, KEY)) in {"not_canonical", "malformed"}


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b'{"version":"x"}',
        b'{"version":NaN}',
        b'{"version":"1","version":"2"}',
        b'{"version":"99999999999999999999"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"sources":' + b"[" * 17 + b"]" * 17 + b"}",
    ],
)
def test_payload_that_is_no_bundle_is_malformed(payload: bytes) -> None:
    assert refusal(policy.sign(payload, KEY)) == "malformed"


def test_brackets_inside_strings_do_not_count_as_depth() -> None:
    bundle = bundle_of(
        governance=policy_pb2.GovernanceRules(
            rules=[policy_pb2.Rule(name='["{' * 100 + "\\" * 7 + '"', priority=1)]
        )
    )
    assert policy.parse_payload(policy.canonical_payload(bundle)) == bundle


def test_payload_above_four_mebibytes_is_too_large() -> None:
    huge = b" " * (4 * 1024 * 1024 + 1)
    assert refusal(policy.sign(huge, KEY)) == "too_large"
    rule = policy_pb2.Rule(name="x" * 1024)
    bundle = bundle_of(governance=policy_pb2.GovernanceRules(rules=[rule] * 5000))
    with pytest.raises(PolicyRefusedError) as caught:
        policy.canonical_payload(bundle)
    assert caught.value.reason == "too_large"


def test_key_id_is_the_documented_hash() -> None:
    key = Ed25519PublicKey.from_public_bytes(bytes(range(32)))
    assert (
        policy.key_id(key)
        == base64.urlsafe_b64encode(hashlib.sha256(bytes(range(32))).digest())[:16].decode()
    )


def test_keys_survive_their_file(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_bytes(policy.dump_keys(KEYS))
    loaded = policy.load_keys(tmp_path / "keys.json")
    assert {k: v.public_bytes_raw() for k, v in loaded.items()} == {
        k: v.public_bytes_raw() for k, v in KEYS.items()
    }


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[1]", '[{"keyId":"x"}]', '[{"keyId":"x","publicKey":"AA=="}]', '[{"keyId":1,"publicKey":2}]'],
)
def test_damaged_key_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys.json").write_text(text)
    if text == "{}":
        assert policy.load_keys(tmp_path / "keys.json") == {}  # no keys: every bundle is refused
        return
    with pytest.raises(InvalidInputError) as caught:
        policy.load_keys(tmp_path / "keys.json")
    assert caught.value.reason == "policy_keys_invalid"


def test_key_under_a_name_that_is_not_its_own_is_refused(tmp_path: Path) -> None:
    text = policy.dump_keys({"AAAAAAAAAAAAAAAA": KEY.public_key()})
    (tmp_path / "keys.json").write_bytes(text)
    with pytest.raises(InvalidInputError):
        policy.load_keys(tmp_path / "keys.json")


texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20)
rules = st.builds(
    policy_pb2.Rule,
    name=texts,
    priority=st.integers(-(2**31), 2**31 - 1),
    conditions=st.lists(
        st.builds(policy_pb2.Condition, key=texts, any_of=st.lists(texts, max_size=3)), max_size=2
    ),
    capability=st.none() | st.builds(policy_pb2.CapabilityRule, allowed_actions=st.lists(texts, max_size=3)),
)
bundles = st.builds(
    policy_pb2.PolicyBundle,
    sandbox=st.just(policy_pb2.SandboxRef(namespace="team", name="writer")),
    version=st.integers(1, 2**63 - 1),
    governance=st.builds(
        policy_pb2.GovernanceRules,
        default_verdict=st.sampled_from([0, 1, 2, 3]),
        rules=st.lists(rules, max_size=4),
        trust_threshold=st.integers(-(2**31), 2**31 - 1),
    ),
    limits=st.none() | st.builds(policy_pb2.RequestLimits, burst=st.integers(-(2**31), 2**31 - 1)),
)


@given(bundles)
def test_every_bundle_comes_back_from_its_payload(bundle: policy_pb2.PolicyBundle) -> None:
    payload = policy.canonical_payload(bundle)
    assert policy.parse_payload(payload) == bundle
    assert policy.verify(policy.sign(payload, KEY), KEYS, SANDBOX, 1) == bundle


@given(st.binary(max_size=300) | st.text(alphabet=string.printable, max_size=300).map(str.encode))
def test_arbitrary_payload_is_refused_or_canonical(payload: bytes) -> None:
    try:
        bundle = policy.parse_payload(payload)
    except PolicyRefusedError:
        return
    assert policy.canonical_payload(bundle) == payload


@given(bundles, st.data())
def test_one_changed_byte_is_never_accepted(bundle: policy_pb2.PolicyBundle, data: st.DataObject) -> None:
    signed = policy.sign(policy.canonical_payload(bundle), KEY)
    place = data.draw(st.integers(0, len(signed.payload) - 1))
    changed = bytearray(signed.payload)
    changed[place] ^= data.draw(st.integers(1, 255))
    signed.payload = bytes(changed)
    assert refusal(signed) == "signature_invalid"

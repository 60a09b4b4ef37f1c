"""Cards: canonical bytes that others compute too, signatures that hold, and forgeries that do not."""

# ruff: noqa: PT017  # property tests: an error with its reason, or a result; both are right

import base64
import json
from datetime import UTC, datetime
from typing import Any

import jwt
import pytest
from a2a.types import AgentCapabilities, AgentCard, AgentInterface, AgentSkill
from a2a.utils.signing import (
    InvalidSignaturesError,
    ProtectedHeader,
    create_agent_card_signer,
    create_signature_verifier,
)
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from kars_common.agent_cards import (
    CardKey,
    CardSigningKey,
    Form,
    canonical,
    card_json,
    forms_agree,
    parse_card,
    sign_card,
    unsafe_parts,
    verify_card,
)
from kars_common.errors import InvalidInputError, KarsError, PermissionDeniedError

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def pem(key: Any) -> bytes:
    encoded: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return encoded


ES256 = CardSigningKey.from_pem(pem(ec.generate_private_key(ec.SECP256R1())), kid="es")
OTHER = CardSigningKey.from_pem(pem(ec.generate_private_key(ec.SECP256R1())), kid="other")
EDDSA = CardSigningKey.from_pem(pem(ed25519.Ed25519PrivateKey.generate()), kid="ed")


def card(**fields: Any) -> AgentCard:
    return AgentCard(
        name="Agent",
        description=fields.pop("description", "Does things"),
        version="1",
        supported_interfaces=[
            AgentInterface(url="https://a.example", protocol_binding="JSONRPC", protocol_version="1.0")
        ],
        capabilities=fields.pop("capabilities", AgentCapabilities(streaming=False)),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[AgentSkill(id="s", name="S", description="Ä €", tags=["t"])],
        **fields,
    )


@pytest.mark.parametrize("key", [ES256, EDDSA], ids=["ES256", "EdDSA"])
def test_a_signed_card_verifies_here_and_with_the_official_verifier(key: CardSigningKey) -> None:
    signed = sign_card(card(), key, jku="https://gateway.example/keys")

    verdict = verify_card(signed, [key.public()], NOW)

    assert (verdict.kid, verdict.algorithm, len(signed.signatures)) == (key.kid, key.algorithm, 1)
    create_signature_verifier(lambda *_: jwt.PyJWK(key.public_jwk()), [key.algorithm])(signed)


def test_a_card_that_the_official_signer_signed_verifies_here() -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    key = CardSigningKey.from_pem(pem(private), kid="theirs")
    header = ProtectedHeader(alg="ES256", kid="theirs", typ="JOSE", jku=None)
    for made in (card(), card(description="")):
        signed = create_agent_card_signer(pem(private), header)(made)
        assert verify_card(signed, [key.public()], NOW).form in Form


def test_a_card_whose_forms_differ_is_signed_for_both_kinds_of_verifier() -> None:
    made = card()
    made.security_requirements.add().schemes["mtls"].list.extend([])
    assert unsafe_parts(made) == ["/securityRequirements/0/schemes/mtls"]

    signed = sign_card(made, ES256)

    assert len(signed.signatures) == 2
    create_signature_verifier(lambda *_: jwt.PyJWK(ES256.public_jwk()), ["ES256"])(signed)
    verify_card(signed, [ES256.public()], NOW)


def test_required_fields_are_there_even_when_empty_and_set_options_even_when_false() -> None:
    document = json.loads(canonical(card(description="")))
    assert document["description"] == ""
    assert document["capabilities"] == {"streaming": False}
    assert json.loads(canonical(card(description=""), Form.CLIENTS)).get("description") is None


def tampered(field: str) -> AgentCard:
    signed = sign_card(card(), ES256)
    match field:
        case "url":
            signed.supported_interfaces[0].url = "https://attacker.example"
        case "skill":
            signed.skills[0].name = "Other"
        case "requirement":
            signed.security_requirements.add().schemes["none"].list.append("x")
        case "signature":
            signed.signatures[0].signature = signed.signatures[0].signature[:-4] + "AAAA"
        case "protected":
            header = json.loads(base64.urlsafe_b64decode(signed.signatures[0].protected + "=="))
            header["alg"] = "none"
            encoded = base64.urlsafe_b64encode(json.dumps(header).encode()).decode().rstrip("=")
            signed.signatures[0].protected = encoded
    return signed


@pytest.mark.parametrize("field", ["url", "skill", "requirement", "signature", "protected"])
def test_any_change_is_noticed(field: str) -> None:
    with pytest.raises(PermissionDeniedError):
        verify_card(tampered(field), [ES256.public()], NOW)


def test_the_official_verifier_notices_it_too() -> None:
    verify = create_signature_verifier(lambda *_: jwt.PyJWK(ES256.public_jwk()), ["ES256"])
    with pytest.raises(InvalidSignaturesError):
        verify(tampered("url"))


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ([], "card_key_unknown"),
        ([EDDSA.public()], "card_key_unknown"),
        ([CardKey(kid="es", algorithm="ES256", jwk=OTHER.jwk)], "card_signature_invalid"),
        ([CardKey(kid="es", algorithm="EdDSA", jwk=EDDSA.jwk)], "card_key_unknown"),
        ([CardKey(kid="es", algorithm="ES256", jwk=ES256.jwk, not_after=NOW)], "card_key_expired"),
    ],
)  # fmt: skip
def test_only_a_pinned_key_of_its_own_algorithm_counts(keys: list[CardKey], reason: str) -> None:
    signed = sign_card(card(), ES256, jku="https://attacker.example/keys")
    with pytest.raises(PermissionDeniedError) as refusal:
        verify_card(signed, keys, NOW)
    assert refusal.value.reason == reason


def test_unsigned_and_oversigned_cards_are_refused() -> None:
    with pytest.raises(PermissionDeniedError) as refusal:
        verify_card(card(), [ES256.public()], NOW)
    assert refusal.value.reason == "card_unsigned"
    many = sign_card(card(), ES256)
    for _ in range(20):
        many.signatures.append(many.signatures[0])
    with pytest.raises(InvalidInputError):
        verify_card(many, [ES256.public()], NOW)


def test_rotation_keeps_both_signatures_valid() -> None:
    signed = sign_card(sign_card(card(), ES256), EDDSA, keep=True)
    assert verify_card(signed, [ES256.public()], NOW).kid == "es"
    assert verify_card(signed, [EDDSA.public()], NOW).kid == "ed"


def test_other_keys_are_no_card_keys() -> None:
    with pytest.raises(InvalidInputError):
        CardSigningKey.from_pem(pem(rsa.generate_private_key(65537, 2048)))
    with pytest.raises(InvalidInputError):
        CardKey.from_jwk(json.dumps({"kty": "oct", "k": "AAAA", "kid": "x"}))
    with pytest.raises(InvalidInputError):
        CardKey.from_jwk(json.dumps({**ES256.jwk.as_dict(private=True), "kid": "x"}))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"[]", "card_malformed"),
        (b"{", "invalid_json"),
        (b'{"name":"a","name":"b"}', "duplicate_key"),
        (b'{"name":7}', "card_malformed"),
        (b'{"skills":' + b"[" * 5000 + b"]" * 5000 + b"}", "too_deep"),
        (b" " * 300_000, "card_too_large"),
    ],
)
def test_what_is_no_card_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(InvalidInputError) as refusal:
        parse_card(raw)
    assert refusal.value.reason == reason


@given(st.binary(max_size=400))
def test_any_bytes_are_a_card_or_a_reason(raw: bytes) -> None:
    try:
        parse_card(raw)
    except KarsError as error:
        assert error.reason


@given(
    st.text(max_size=40),
    st.text(max_size=40),
    st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4),
)
def test_any_card_that_is_signed_verifies_after_a_round_trip(
    name: str, description: str, params: dict[str, str]
) -> None:
    made = card(description=description)
    made.name = name
    extension = made.capabilities.extensions.add(uri="https://x.example")
    extension.params.update(params)
    signed = sign_card(made, EDDSA)
    again = parse_card(card_json(signed))
    assert verify_card(again, [EDDSA.public()], NOW).kid == "ed"
    assert forms_agree(made) == (len(signed.signatures) == 1)

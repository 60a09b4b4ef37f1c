"""`kars a2a card`: signed here, verified here and by the official verifier; forgeries end with code 2."""

import json
from pathlib import Path
from typing import Any

import jwt
import pytest
from a2a.types import AgentCard
from a2a.utils.signing import create_signature_verifier
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from google.protobuf import json_format
from kars_cli import app
from kars_common.agent_cards import CardSigningKey
from typer.testing import CliRunner, Result

CARD = {
    "name": "Agent\u001b[31m",
    "description": "Does things",
    "version": "1",
    "supportedInterfaces": [
        {"url": "https://a.example", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}
    ],
    "capabilities": {},
    "defaultInputModes": ["text/plain"],
    "defaultOutputModes": ["text/plain"],
    "skills": [{"id": "s", "name": "S", "description": "d", "tags": ["t"]}],
}


def kars(*arguments: object) -> Result:
    return CliRunner().invoke(app.build(), ["a2a", "card", *map(str, arguments)])


@pytest.fixture(params=["p256", "ed25519"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    private: Any = (
        ec.generate_private_key(ec.SECP256R1())
        if request.param == "p256"
        else ed25519.Ed25519PrivateKey.generate()
    )
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    key = tmp_path / "key.pem"
    key.touch(mode=0o600)
    key.write_bytes(pem)
    public = CardSigningKey.from_pem(pem, kid="k1").public_jwk()
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [public]}))
    (tmp_path / "card.json").write_text(json.dumps(CARD))
    return tmp_path


def test_sign_then_verify(house: Path) -> None:
    signed = house / "signed.json"
    result = kars("sign", house / "card.json", "--key", house / "key.pem", "--kid", "k1", "--out", signed)
    assert result.exit_code == 0, result.output

    verified = kars("verify", signed, "--keys", house / "keys.json", "-o", "json")

    assert verified.exit_code == 0, verified.output
    assert json.loads(verified.stdout)["kid"] == "k1"
    public = json.loads((house / "keys.json").read_text())["keys"][0]
    card = json_format.ParseDict(json.loads(signed.read_text()), AgentCard())
    create_signature_verifier(lambda *_: jwt.PyJWK(public), ["ES256", "EdDSA"])(card)


def test_a_changed_card_does_not_verify(house: Path) -> None:
    signed = json.loads(kars("sign", house / "card.json", "--key", house / "key.pem", "--kid", "k1").stdout)
    signed["supportedInterfaces"][0]["url"] = "https://attacker.example"
    (house / "forged.json").write_text(json.dumps(signed))

    result = kars("verify", house / "forged.json", "--keys", house / "keys.json", "-o", "json")

    assert result.exit_code == 2
    assert json.loads(result.stdout)["reason"] == "card_signature_invalid"


def test_show_says_what_is_there_without_driving_the_terminal(house: Path) -> None:
    result = kars("show", house / "card.json")
    assert result.exit_code == 0
    assert "https://a.example" in result.stdout
    assert "\x1b[31m" not in result.stdout


@pytest.mark.parametrize("text", ["{", '{"name":"a","name":"b"}', "[]"])
def test_what_is_no_card_is_refused_with_its_reason(house: Path, text: str) -> None:
    (house / "bad.json").write_text(text)
    assert kars("show", house / "bad.json").exit_code == 2


def test_an_exposed_key_and_an_odd_jku_are_refused(house: Path) -> None:
    assert kars("sign", house / "card.json", "--key", house / "key.pem", "--jku", "http://x").exit_code == 2
    (house / "key.pem").chmod(0o644)
    result = kars("sign", house / "card.json", "--key", house / "key.pem")
    assert result.exit_code == 2
    assert "card_key_exposed" in result.output

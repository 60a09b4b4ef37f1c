"""The federation file: what it says becomes policy, and what is wrong in it stops the controller by name."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars_common.errors import InvalidInputError
from kars_common.policy import key_id
from kars_common.testing import MemoryAuthority
from kars_controller import testing
from kars_controller.compile.mesh import relay_bundle
from kars_controller.local_services import relay_plan
from kars_controller.mesh import Federation, StatementKeys

PARTNER = "partner.example"
KEY = Ed25519PrivateKey.generate().public_key()
ENTRY: dict[str, Any] = {
    "trustDomain": PARTNER,
    "endpoint": "relay.partner.example:7444",
    "trustBundleFile": "partner.pem",
    "statementKeys": [{"keyId": key_id(KEY), "publicKey": testing.b64u(KEY.public_bytes_raw())}],
}


def written(folder: Path, *entries: dict[str, Any]) -> Path:
    (folder / "partner.pem").write_bytes(MemoryAuthority(PARTNER).trust_bundle_pem)
    path = folder / "federation.json"
    path.write_text(json.dumps({"domains": list(entries)}))
    return path


def test_a_federated_domain_is_in_the_relays_policy_and_its_keys_with_every_agent(tmp_path: Path) -> None:
    found = Federation.read(written(tmp_path, ENTRY), "kars.local")
    keys = StatementKeys(tmp_path / "keys.json", "kars.local", timedelta(days=1), testing.Clock(), found.keys)
    mesh = relay_bundle((), keys.messages(), found.domains).mesh
    (domain,) = mesh.federated_domains
    assert (domain.trust_domain, domain.endpoint) == (PARTNER, "relay.partner.example:7444")
    assert "BEGIN CERTIFICATE" in domain.trust_bundle_pem
    assert {key.trust_domain for key in mesh.statement_keys} == {"kars.local", PARTNER}
    listed = json.loads(keys.trust_file())["keys"]
    assert {
        "keyId": key_id(KEY),
        "publicKey": testing.b64u(KEY.public_bytes_raw()),
        "trustDomain": PARTNER,
    } in listed
    assert keys.signing().key_id != key_id(KEY)


def test_without_a_file_nobody_is_federated() -> None:
    assert Federation.read(None, "kars.local").domains == ()


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry | {"trustDomain": "kars.local"},
        lambda entry: entry | {"trustDomain": "No Domain"},
        lambda entry: entry | {"trustBundleFile": "nowhere.pem"},
        lambda entry: entry | {"statementKeys": []},
        lambda entry: entry | {"statementKeys": [{"keyId": "x", "publicKey": "AAAA"}]},
        lambda entry: entry | {"statementKeys": [{**entry["statementKeys"][0], "keyId": "A" * 16}]},
        lambda entry: entry | {"statementKeys": [{**entry["statementKeys"][0], "publicKey": "?"}]},
        lambda entry: entry | {"roots": "x"},
        lambda entry: {name: value for name, value in entry.items() if name != "trustBundleFile"},
    ],
)
def test_what_is_wrong_stops_the_controller(tmp_path: Path, change: Callable[[Any], Any]) -> None:
    with pytest.raises(InvalidInputError) as refusal:
        Federation.read(written(tmp_path, change(ENTRY)), "kars.local")
    assert refusal.value.reason == "mesh_federation_invalid"


def test_a_domain_named_twice_or_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    for path in (written(tmp_path, ENTRY, ENTRY), tmp_path / "absent.json"):
        with pytest.raises(InvalidInputError):
            Federation.read(path, "kars.local")


def test_the_relay_is_told_where_federated_relays_may_call() -> None:
    common: dict[str, Any] = {
        "trust_domain": "kars.local",
        "controller_endpoint": "a:1",
        "bootstrap_endpoint": "a:2",
        "trust_bundle_pem": b"",
        "policy_keys": b"",
        "witness_key": b"",
    }
    assert "FEDERATION_ADDRESS" not in relay_plan(**common).settings
    plan = relay_plan(**common, federation_address="0.0.0.0:7444")
    assert plan.settings["FEDERATION_ADDRESS"] == "0.0.0.0:7444"
    assert plan.digest != relay_plan(**common).digest

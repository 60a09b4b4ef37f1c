"""Policy bundles for tests, signed the way the controller signs them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf import json_format
from kars.policy.v1 import policy_pb2
from kars_common.policy import PolicyStore, canonical_payload, dump_keys, key_id, sign


def capability(
    name: str, *, allow: Sequence[str] = (), deny: Sequence[str] = (), priority: int = 0
) -> dict[str, Any]:
    """Return a capability rule in the bundle's JSON."""
    rule = {"allowedActions": list(allow), "deniedActions": list(deny)}
    return {"name": name, "priority": priority, "capability": rule}


def approval(
    name: str, actions: Sequence[str], *, priority: int = 0, min_approvals: int = 1
) -> dict[str, Any]:
    """Return an approval rule in the bundle's JSON."""
    return {
        "name": name,
        "priority": priority,
        "approval": {"actions": list(actions), "minApprovals": min_approvals},
    }


def mesh_access(
    relay: str = "",
    *,
    both: Sequence[str] = (),
    out: Sequence[str] = (),
    into: Sequence[str] = (),
    sandbox: tuple[str, str] = ("team", "agent"),
) -> dict[str, Any]:
    """Return a sandbox's part in the mesh in the bundle's JSON: peers by the direction of their edges."""
    own = f"spiffe://kars.local/ns/{sandbox[0]}/sandbox/{sandbox[1]}"
    edges = [{"sender": own, "recipient": peer, "score": 700} for peer in (*both, *out)]
    edges += [{"sender": peer, "recipient": own, "score": 700} for peer in (*both, *into)]
    return {"peer": own, "relayEndpoint": relay, "edges": edges, "trustThreshold": 500}


def bundle(
    *,
    sandbox: tuple[str, str] = ("team", "agent"),
    version: int = 1,
    models: Sequence[tuple[str, str]] = (("main", "gpt-test"),),
    rules: Sequence[dict[str, Any]] | None = None,
    default: str = "VERDICT_ALLOW",
    budget: Mapping[str, str] | None = None,
    safety: dict[str, Any] | None = None,
    tools: Sequence[dict[str, Any]] = (),
    limits: Mapping[str, int | str] | None = None,
    mesh: dict[str, Any] | None = None,
) -> policy_pb2.PolicyBundle:
    """Return a bundle; what is left out does not restrict, except that limits are wide for tests."""
    document = {
        "sandbox": {"namespace": sandbox[0], "name": sandbox[1]},
        "version": str(version),
        "issuedAt": "2026-01-01T00:00:00Z",
        "inference": {
            "models": [{"provider": provider, "deployment": model} for provider, model in models],
            "tokenBudget": dict(budget or {}),
            "contentSafety": safety or {},
        },
        "governance": {"defaultVerdict": default, "rules": list(rules or ()), "tools": list(tools)},
        "limits": dict(limits) if limits is not None else {"requestsPerSecond": 100000, "burst": 100000},
    }
    if mesh is not None:
        document["meshAccess"] = mesh
    return json_format.ParseDict(document, policy_pb2.PolicyBundle())


def sign_into(
    store: Path, keys_file: Path, document: policy_pb2.PolicyBundle, key: Ed25519PrivateKey
) -> None:
    """Keep a signed bundle as a router's last known good one, and write the key that it trusts."""
    signed = sign(canonical_payload(document), key)
    PolicyStore(store).save(signed, document.version)
    keys_file.write_bytes(dump_keys({key_id(key.public_key()): key.public_key()}))

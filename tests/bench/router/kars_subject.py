"""Our router as it ships: every gate, durable audit, a signed policy in force.

The policy is of the size that a real sandbox has, and every kind of rule is in
it. Nothing is switched off; the only thing raised are documented limits (rate
limits and token budgets), since a benchmark that is throttled measures the
throttle. There is no controller: the router runs on the last known good policy.
"""

import base64
import json
import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars.policy.v1 import policy_pb2
from kars_common import policy

from tests.bench.router import processes, wire
from tests.bench.router.subjects import Running, Site, free_port

_NAMESPACE, _SANDBOX = "bench", "agent"
_PROVIDER = "bench"
_UNREACHED = 1_000_000_000


class Kars:
    """The router of this repository."""

    name = "kars"
    title = "kars router, all gates, durable audit"

    def start(self, site: Site) -> Running:
        """Write keys, policy and provider, and start it."""
        port = free_port()
        state = site.folder / "state"
        _write_policy(state, site.folder / "keys.json")
        _write_provider(site.folder / "providers.json", site.upstream_port)
        env = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(site.folder),
            "KARS_ROUTER_NAMESPACE": _NAMESPACE,
            "KARS_ROUTER_SANDBOX": _SANDBOX,
            "KARS_ROUTER_DOOR_ADDRESS": f"127.0.0.1:{port}",
            "KARS_ROUTER_STATE_DIR": str(state),
            "KARS_ROUTER_PROVIDERS_FILE": str(site.folder / "providers.json"),
            "KARS_ROUTER_POLICY_KEYS_FILE": str(site.folder / "keys.json"),
        }
        process = processes.Process(
            self.name,
            processes.python_module("kars_router"),
            core=site.core,
            log=site.folder / "log",
            env=env,
        )
        return Running(port=port, process=process)


def bundle() -> policy_pb2.PolicyBundle:
    """Return the policy in force: limits that are never reached, and rules of every kind to walk past."""
    return policy_pb2.PolicyBundle(
        sandbox=policy_pb2.SandboxRef(namespace=_NAMESPACE, name=_SANDBOX),
        version=1,
        inference=policy_pb2.InferenceRules(
            token_budget=policy_pb2.TokenBudget(
                per_request_tokens=100_000,
                daily_tokens=100_000 * _UNREACHED,
                monthly_tokens=1_000_000 * _UNREACHED,
            ),
            content_safety=policy_pb2.ContentSafety(
                hate=policy_pb2.SEVERITY_LOW,
                self_harm=policy_pb2.SEVERITY_LOW,
                sexual=policy_pb2.SEVERITY_LOW,
                violence=policy_pb2.SEVERITY_MEDIUM,
            ),
            models=[
                policy_pb2.ModelTarget(provider=_PROVIDER, deployment=name)
                for name in (wire.MODEL, wire.PACED_MODEL)
            ],
        ),
        governance=policy_pb2.GovernanceRules(
            default_verdict=policy_pb2.VERDICT_DENY,
            rules=_rules(),
            tools=[
                policy_pb2.ToolRule(tool="*", rate_rps=10, rate_burst=20),
                policy_pb2.ToolRule(tool="publish_report", approval_required=True),
            ],
        ),
        limits=policy_pb2.RequestLimits(
            requests_per_second=_UNREACHED, burst=_UNREACHED, max_concurrent=1024
        ),
    )


def _rules() -> list[policy_pb2.Rule]:
    """Return rules as a real profile has them; the one that allows model calls is not the first."""
    denied = [
        policy_pb2.Rule(
            name=f"deny-{tool}",
            priority=900 - index,
            capability=policy_pb2.CapabilityRule(denied_actions=[f"tool:{tool}:*"]),
        )
        for index, tool in enumerate(("shell", "delete", "email", "transfer", "spawn"))
    ]
    approval = policy_pb2.Rule(
        name="publish-needs-approval",
        priority=500,
        approval=policy_pb2.ApprovalRule(actions=["tool:publish_report:*"], min_approvals=1),
    )
    rate = policy_pb2.Rule(
        name="model-calls-per-minute",
        priority=400,
        rate_limit=policy_pb2.RateLimitRule(actions=["inference:*"], max_calls=_UNREACHED, window_ms=60_000),
    )
    allowed = policy_pb2.Rule(
        name="allow-work",
        priority=100,
        capability=policy_pb2.CapabilityRule(
            allowed_actions=["tool:read_file:*", "tool:list_files:*", "inference:chat_completions:*"]
        ),
    )
    return [*denied, approval, rate, allowed]


def _write_policy(state: Path, keys_file: Path) -> None:
    key = Ed25519PrivateKey.generate()
    public = key.public_key()
    signed = policy.sign(policy.canonical_payload(bundle()), key)
    folder = state / "policy"
    folder.mkdir(parents=True, mode=0o700)
    policy.PolicyStore(folder).save(signed, 1)
    keys_file.write_bytes(policy.dump_keys({policy.key_id(public): public}))


def _write_provider(path: Path, upstream_port: int) -> None:
    key_file = path.with_name("bench.key")
    key_file.touch(mode=0o600)
    key_file.write_text("bench-" + base64.b64encode(os.urandom(24)).decode())
    provider = {
        "name": _PROVIDER,
        "baseUrl": f"http://127.0.0.1:{upstream_port}/v1",
        "auth": {"header": "Authorization", "format": "Bearer {key}", "keyFile": key_file.name},
    }
    path.write_text(json.dumps({"providers": [provider]}))

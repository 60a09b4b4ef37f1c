"""What the schema of KarsSandbox cannot say: short forms, rules across fields, and honest remarks.

Works on the raw spec, so that a rule is reported beside wrong fields; remarks see the valid one.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kars_controller.api_types import peers
from kars_controller.api_types.base import RawSpec, Violation, dig
from kars_controller.api_types.runtimes import VARIANT_OF_KIND
from kars_controller.raw import Raw

if TYPE_CHECKING:
    from kars_controller.api_types.sandbox import NetworkPolicy, SandboxSpec

_CODE_KINDS = ("oci", "git", "local")
_MESH_MODES = {"Auto": "auto", "AgentId": "agent-id", "Anonymous": "anonymous"}
"""The spelling of older manifests."""
_EMPTY_SELINUX = '\\"\\"'
"""The literal that an often used chart writes where it means nothing."""


def normalise(spec: RawSpec, warnings: list[str]) -> RawSpec:
    """Turn documented short forms into full ones.

    `sandbox` left out; the runtime's own object written as null; endpoints as bare hosts; the BYO
    contract version left out.
    """
    spec = dict(spec)
    if spec.get("sandbox") is None:
        spec["sandbox"] = {}
    if isinstance(spec["sandbox"], dict) and spec["sandbox"].get("selinuxContext") == _EMPTY_SELINUX:
        spec["sandbox"] = {**spec["sandbox"], "selinuxContext": ""}
    if isinstance(spec.get("runtime"), dict):
        spec["runtime"] = _normalise_runtime(spec["runtime"], warnings)
    mode = dig(spec, "meshAuth", "mode")
    if mode in _MESH_MODES:
        spec["meshAuth"] = {**spec["meshAuth"], "mode": _MESH_MODES[mode]}
    endpoints = dig(spec, "networkPolicy", "allowedEndpoints")
    if isinstance(endpoints, list):
        full = [_endpoint(item) for item in endpoints]
        spec["networkPolicy"] = {**spec["networkPolicy"], "allowedEndpoints": full}
    return spec


def _normalise_runtime(runtime: RawSpec, warnings: list[str]) -> RawSpec:
    runtime = dict(runtime)
    variant = VARIANT_OF_KIND.get(str(runtime.get("kind")))
    if variant is not None and variant in runtime and runtime[variant] is None:
        runtime[variant] = {}
    byo = runtime.get("byo")
    if isinstance(byo, dict) and byo.get("contractVersion") is None:
        warnings.append("spec.runtime.byo.contractVersion is not set: v1 is assumed")
        runtime["byo"] = {**byo, "contractVersion": "v1"}
    return runtime


def _endpoint(item: Raw) -> Raw:
    if not isinstance(item, str):
        return item
    host, colon, port = item.rpartition(":")
    return {"host": host, "port": int(port)} if colon and port.isdecimal() else {"host": item}


def rules(spec: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield every broken rule."""
    yield from _runtime_rules(dig(spec, "runtime"))
    if dig(spec, "runtime", "kind") == "BYO" and spec.get("agent") is not None:
        yield Violation("spec.agent", "not allowed when spec.runtime.kind is BYO")
    governance = spec.get("governance")
    if isinstance(governance, Mapping):
        yield from _governance_rules(governance)


def _runtime_rules(runtime: Raw) -> Iterator[Violation]:
    if not isinstance(runtime, Mapping):
        return
    kind = runtime.get("kind")
    for owner, variant in VARIANT_OF_KIND.items():
        given = runtime.get(variant)
        if given is not None and kind in VARIANT_OF_KIND and owner != kind:
            yield Violation(
                f"spec.runtime.{variant}",
                f"belongs to kind {owner}, got kind {kind}; allowed: {VARIANT_OF_KIND[kind]}",
            )
        if given is None and owner == kind:
            yield Violation(f"spec.runtime.{variant}", f"is required when spec.runtime.kind is {kind}")
        code = dig(given, "agentCode")
        if isinstance(code, Mapping):
            chosen = [name for name in _CODE_KINDS if code.get(name) is not None]
            if len(chosen) != 1:
                yield Violation(
                    f"spec.runtime.{variant}.agentCode",
                    f"got {' and '.join(chosen) or 'none'}, allowed: exactly one of {', '.join(_CODE_KINDS)}",
                )


def _governance_rules(governance: Mapping[str, Any]) -> Iterator[Violation]:
    if governance.get("enabled") is True and not dig(governance, "toolPolicyRef", "name"):
        yield Violation(
            "spec.governance.toolPolicyRef.name", "is required when spec.governance.enabled is true"
        )
    several = governance.get("mcpServerRefs")
    if not isinstance(several, list):
        return
    if several and governance.get("mcpServerRef") is not None:
        yield Violation(
            "spec.governance.mcpServerRef", "not allowed beside mcpServerRefs; use mcpServerRefs only"
        )
    names = [str(dig(item, "name")) for item in several]
    for index, name in enumerate(names):
        if name in names[:index]:
            yield Violation(
                f"spec.governance.mcpServerRefs[{index}].name", f"got {name!r} twice; names must be unique"
            )


def remarks(spec: "SandboxSpec") -> Iterable[str]:
    """Yield one line for each field that is accepted and has no effect, or less than it says, here."""
    if spec.memory_ref is not None:
        yield "spec.memoryRef: this controller does not serve KarsMemory yet; the agent has no memory store"
    if spec.azure_services:
        yield "spec.azureServices: no Azure identity on this platform; the list has no effect"
    if spec.agent is not None:
        yield "spec.agent: not passed to this runtime yet; give instructions in the agent's code"
    for name in ("a2a", "upstream_compatibility"):
        if getattr(spec, name) is not None:
            yield f"spec.{type(spec).model_fields[name].alias}: not implemented yet; it has no effect"
    if spec.mesh_auth is not None and spec.mesh_auth.custom_security_attributes:
        yield "spec.meshAuth.customSecurityAttributes: no directory on this platform takes them; no effect"
    yield from _governance_remarks(spec)
    if spec.network_policy is not None:
        yield from _network_remarks(spec.network_policy)
    yield from _isolation_remarks(spec)


def _governance_remarks(spec: "SandboxSpec") -> Iterable[str]:
    governance = spec.governance
    if governance is None:
        return
    if not governance.enabled:
        yield "spec.governance.enabled is false: no action of this agent is denied or held by a tool policy"
    if governance.mcp_server_ref is not None or governance.mcp_server_refs:
        yield "spec.governance.mcpServerRefs: McpServer is not served yet; none is reachable"
    if any(peers.has_foreign_id(entry) for entry in peers.entries(governance.trusted_peers or "")):
        yield (
            "spec.governance.trustedPeers: what follows a name's colon, a foreign mesh id, has"
            " no effect; a peer proves its SPIFFE id"
        )


def _network_remarks(network: "NetworkPolicy") -> Iterable[str]:
    closed = "there is no egress service on this platform yet and the sandbox has no network"
    if network.allowed_endpoints:
        yield f"spec.networkPolicy.allowedEndpoints: {closed}; none of them is reachable"
    if network.allowlist_ref is not None:
        yield f"spec.networkPolicy.allowlistRef: {closed}; the list is not fetched"
    if not network.default_deny:
        yield "spec.networkPolicy.defaultDeny is false: the sandbox has no network all the same"
    if network.learn_egress is not None or network.approval_required is not None:
        yield f"spec.networkPolicy.learnEgress and approvalRequired: {closed}"


def _isolation_remarks(spec: "SandboxSpec") -> Iterable[str]:
    isolation = spec.sandbox
    if isolation.seccomp_profile not in ("kars-strict", "RuntimeDefault", ""):
        yield f"spec.sandbox.seccompProfile: {isolation.seccomp_profile!r} is unknown; kars-strict is used"
    if isolation.selinux_context:
        yield "spec.sandbox.selinuxContext: this platform sets no SELinux type"
    if not isolation.read_only_root_filesystem:
        yield "spec.sandbox.readOnlyRootFilesystem is false: the root is read-only all the same"
    if not isolation.run_as_non_root:
        yield "spec.sandbox.runAsNonRoot is false: the agent runs as uid 1000 all the same"
    if isolation.allow_privilege_escalation:
        yield "spec.sandbox.allowPrivilegeEscalation is true: no-new-privileges is in force all the same"
    if set(isolation.writable_paths) != {"/sandbox", "/tmp"}:  # noqa: S108 - inside the sandbox
        yield "spec.sandbox.writablePaths: exactly /sandbox and /tmp are writable on this platform"
    if isolation.isolation == "confidential":
        yield "spec.sandbox.isolation: confidential needs a hardware enclave; it will not start here"

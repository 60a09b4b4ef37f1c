"""Builds the pod of a sandbox: what the agent is, what the router is given, in which limits."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kars_common.errors import FailedPreconditionError

from kars_controller.api_types.runtimes import Runtime
from kars_controller.api_types.sandbox import SandboxSpec
from kars_controller.code_sources import GitSource
from kars_controller.platforms.base import (
    AGENT_CODE,
    ROUTER_STATE_DIR,
    AgentPlan,
    Enforcement,
    Isolation,
    PodPlan,
    ReadOnlyMount,
    ResourceLimits,
    RouterFile,
    RouterPlan,
    SandboxKey,
    SeccompProfile,
)
from kars_controller.providers import ProviderShare
from kars_controller.reconcile import env, quantities
from kars_controller.reconcile.plan import RouterMaterial
from kars_controller.resources import Document, ResourceKey
from kars_controller.runtimes import RuntimeCatalog

JOIN_TOKEN_PATH = "join-token"  # noqa: S105 - a file name


@dataclass(frozen=True, kw_only=True)
class MeshMount:
    """What an agent is given of the mesh: its own name, and whose statements it may believe."""

    peer: str
    directory: Path


_LIMIT_FIELDS = ("cpu", "memory", "ephemeral-storage", "pids")


def build(
    *,
    sandbox: Document,
    spec: SandboxSpec,
    model: str,
    runtimes: RuntimeCatalog,
    router: RouterMaterial,
    providers: ProviderShare,
    code_dir: Path,
    mesh: MeshMount | None = None,
) -> PodPlan:
    """Return the pod of a valid sandbox, without the router's join token.

    Raises:
        FailedPreconditionError: the reason names why this platform cannot run it: `runtime_not_installed`,
            `adapter_missing`, `byo_contract_invalid`, `agent_code_unsupported`.
    """
    key = ResourceKey.of(sandbox)
    plan = PodPlan(
        key=SandboxKey(key.namespace, key.name),
        uid=sandbox["metadata"]["uid"],
        digest="",
        agent=_agent(sandbox, spec, model, runtimes, code_dir, mesh=mesh),
        router=_router(key, router, providers),
        suspended=spec.suspended,
    )
    return replace(plan, digest=_digest(plan))


def with_join_token(plan: PodPlan, token: str) -> PodPlan:
    """Return the plan with a token for a router that has no identity yet; the digest does not change."""
    file = RouterFile(path=JOIN_TOKEN_PATH, content=token.encode(), restarts_router=False)
    return replace(plan, router=replace(plan.router, files=(*plan.router.files, file)))


def unused_limits(spec: SandboxSpec) -> list[str]:
    """Return the limits that no platform knows."""
    return [] if spec.resources is None else sorted(set(spec.resources.limits) - set(_LIMIT_FIELDS))


def _agent(
    sandbox: Document,
    spec: SandboxSpec,
    model: str,
    runtimes: RuntimeCatalog,
    code_dir: Path,
    *,
    mesh: MeshMount | None,
) -> AgentPlan:
    runtime = spec.runtime
    argv, bin_dir, mounts = _command(runtime, runtimes)
    code, seed = _code(sandbox, runtime, code_dir)
    name = sandbox["metadata"]["name"]
    variables, _ = env.agent_env(name, runtime, model, bin_dir)
    if mesh is not None:
        variables |= env.mesh_env(mesh.peer)
        mounts = (*mounts, ReadOnlyMount(source=mesh.directory, target=env.MESH_DIR))
    return AgentPlan(
        argv=argv,
        env=variables,
        code=code,
        runtime=mounts,
        workspace_seed=seed,
        listen_ports=(env.CHAT_PORT,),
        limits=_limits(spec),
        isolation=_isolation(spec),
    )


def _command(
    runtime: Runtime, runtimes: RuntimeCatalog
) -> tuple[tuple[str, ...], str, tuple[ReadOnlyMount, ...]]:
    if runtime.byo is not None:
        if not runtime.byo.command:
            raise FailedPreconditionError(
                "byo_contract_invalid",
                "spec.runtime.byo.command is required: this platform pulls no images",
            )
        return (*runtime.byo.command, *(runtime.byo.args or ())), "", runtimes.base
    if runtime.kind == "SemanticKernel":
        raise FailedPreconditionError("adapter_missing", "there is no adapter for SemanticKernel")
    installed = runtimes.find(runtime.kind)
    if installed is None:
        known = ", ".join([*sorted(runtimes.installed), "BYO"])
        raise FailedPreconditionError(
            "runtime_not_installed",
            f"runtime {runtime.kind} is not installed on this platform; installed: {known}",
        )
    entrypoint = runtime.adapter.entrypoint if runtime.adapter is not None else None
    argv = tuple(entrypoint) if entrypoint else installed.argv
    if argv[0] in ("python", "python3"):
        argv = (f"{installed.bin_dir}/python", *argv[1:])
    return argv, installed.bin_dir, installed.mounts


def git_source(sandbox: Document, runtime: Runtime) -> GitSource | None:
    """Return what has to be fetched before the pod can run; None when nothing has to.

    Raises:
        FailedPreconditionError: `agent_code_unsupported`.
    """
    git = runtime.agent_code.git if runtime.agent_code is not None else None
    if git is None:
        return None
    return GitSource(
        owner=sandbox["metadata"]["uid"], url=git.url, ref=git.ref or "HEAD", path=git.path or ""
    )


def _code(
    sandbox: Document, runtime: Runtime, code_dir: Path
) -> tuple[tuple[ReadOnlyMount, ...], Path | None]:
    code = runtime.agent_code
    if code is None:
        return (), None
    source = git_source(sandbox, runtime)
    if source is not None:
        return (ReadOnlyMount(source=source.folder(code_dir), target=AGENT_CODE),), None
    if code.local is None:
        raise FailedPreconditionError(
            "agent_code_unsupported", "agentCode.oci cannot be fetched here; use agentCode.git or local"
        )
    seed = Path(code.local.workspace) if code.local.workspace is not None else None
    return (ReadOnlyMount(source=Path(code.local.path), target=AGENT_CODE),), seed


def _limits(spec: SandboxSpec) -> ResourceLimits:
    limits = ResourceLimits()
    if spec.resources is None:
        return limits
    given = spec.resources.limits
    changes: dict[str, Any] = {}
    if "memory" in given:
        changes["memory_bytes"] = quantities.to_bytes(given["memory"])
    if "cpu" in given:
        changes["cpu_millis"] = quantities.to_millis(given["cpu"])
    if "ephemeral-storage" in given:
        changes["workspace_bytes"] = quantities.to_bytes(given["ephemeral-storage"])
    if "pids" in given:
        changes["pids"] = quantities.to_bytes(given["pids"])
    return replace(limits, **changes)


def _isolation(spec: SandboxSpec) -> Isolation:
    """Return what is demanded. Landlock, which older kernels lack in part, is announced (ADR 0007)."""
    asked = spec.sandbox
    standard = asked.isolation == "standard"
    default_profile = standard or asked.seccomp_profile in ("RuntimeDefault", "")
    return Isolation(
        seccomp=SeccompProfile.RUNTIME_DEFAULT if default_profile else SeccompProfile.KARS_STRICT,
        landlock=Enforcement.BEST_EFFORT,
    )


def _router(key: ResourceKey, material: RouterMaterial, providers: ProviderShare) -> RouterPlan:
    state = ROUTER_STATE_DIR
    variables = {
        "KARS_ROUTER_NAMESPACE": key.namespace,
        "KARS_ROUTER_SANDBOX": key.name,
        "KARS_ROUTER_TRUST_DOMAIN": material.trust_domain,
        "KARS_ROUTER_PROVIDERS_FILE": f"{state}/providers.json",
        "KARS_ROUTER_POLICY_KEYS_FILE": f"{state}/policy-keys.json",
        "KARS_ROUTER_CONTROLLER_ENDPOINT": material.controller_endpoint,
        "KARS_ROUTER_BOOTSTRAP_ENDPOINT": material.bootstrap_endpoint,
        "KARS_ROUTER_TRUST_BUNDLE_FILE": f"{state}/trust.pem",
        "KARS_ROUTER_JOIN_TOKEN_FILE": f"{state}/{JOIN_TOKEN_PATH}",
        "KARS_ROUTER_WITNESS_KEY_FILE": f"{state}/witness.key",
    }
    files = {
        **providers.files,
        "policy-keys.json": material.policy_keys,
        "trust.pem": material.trust_bundle_pem,
        "witness.key": material.witness_key,
    }
    ordered = [
        # The router follows changes of its providers by itself.
        RouterFile(path=path, content=content, restarts_router=path not in providers.files)
        for path, content in sorted(files.items())
    ]
    return RouterPlan(env=variables, files=tuple(ordered))


def _digest(plan: PodPlan) -> str:
    """Return a digest of all that should restart something when it changes."""
    hashed = hashlib.sha256()
    for part in (plan.agent, plan.router.argv, sorted(plan.router.env.items())):
        hashed.update(repr(part).encode() + b"\0")
    hashed.update(repr(sorted(plan.agent.env.items())).encode())
    for file in plan.router.files:
        hashed.update(f"{file.path}\0{file.mode}\0".encode() + hashlib.sha256(file.content).digest())
    return f"sha256:{hashed.hexdigest()}"

"""Gathers what reconcilers look at, so that they themselves touch nothing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from kars_common.errors import InvalidInputError, KarsError
from kars_common.policy import parse_payload

from kars_controller import providers, references
from kars_controller.api_types import parse_spec
from kars_controller.api_types.inference_policy import InferencePolicySpec
from kars_controller.compile import bundle as bundles
from kars_controller.distribution import PolicyPublisher, PolicySessions, Published
from kars_controller.mesh import MeshView, PeerView
from kars_controller.platforms.base import Platform, SandboxKey
from kars_controller.providers import Providers
from kars_controller.reconcile.plan import PolicyObserved, PolicyUser, RouterMaterial, SandboxObserved
from kars_controller.references import Reference
from kars_controller.resources import Document, ResourceKey, ResourceStore, deleting
from kars_controller.runtimes import RuntimeCatalog


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What is the same for every sandbox of this controller."""

    runtimes: RuntimeCatalog
    router: RouterMaterial
    read_providers: Callable[[], Providers] = lambda: providers.Providers(problem="no providers file")
    byo_strict: bool = False
    code_dir: Path
    mesh: MeshView | None = None
    relay_endpoint: Callable[[], str] = lambda: ""
    mesh_dir: Path | None = None


class Observer:
    """Reads the store, the policy sessions and the platform."""

    def __init__(
        self,
        *,
        store: ResourceStore,
        publisher: PolicyPublisher,
        sessions: PolicySessions,
        platform: Platform,
        surroundings: Surroundings,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._sessions = sessions
        self._platform = platform
        self._surroundings = surroundings
        self._now = now

    async def sandbox(self, document: Document, apply_error: KarsError | None) -> SandboxObserved:
        """Return what bears on a sandbox now."""
        key = SandboxKey(document["metadata"]["namespace"], document["metadata"]["name"])
        missing: dict[str, str] = {}
        inference = self._resolve(references.inference_policy_of(document), missing)
        tool_reference = references.tool_policy_of(document)
        tool = self._resolve(tool_reference, missing) if tool_reference is not None else None
        return SandboxObserved(
            now=self._now(),
            inference_policy=inference,
            tool_policy=tool,
            missing=missing,
            published=self._publisher.current(key),
            answer=self._sessions.answer(key),
            pod=await self._platform.observe(key),
            apply_error=apply_error,
            providers=self._surroundings.read_providers(),
            runtimes=self._surroundings.runtimes,
            router=self._surroundings.router,
            byo_strict=self._surroundings.byo_strict,
            code_dir=self._surroundings.code_dir,
            mesh=self._mesh(document),
            relay_endpoint=self._surroundings.relay_endpoint(),
            mesh_dir=self._surroundings.mesh_dir,
        )

    def _mesh(self, document: Document) -> PeerView | None:
        view = self._surroundings.mesh
        return None if view is None else view.of(document, self._now().timestamp())

    def policy(self, document: Document) -> PolicyObserved:
        """Return what bears on a policy now."""
        digest = _digest_of(document)
        users = tuple(self._user(sandbox, document, digest) for sandbox in self.sandboxes_using(document))
        return PolicyObserved(now=self._now(), users=users)

    def sandboxes_using(self, policy: Document) -> Iterator[Document]:
        """Yield the sandboxes that run and are bound to a policy, the shipped default's included."""
        key = ResourceKey.of(policy)
        for sandbox in self._store.list_kind("KarsSandbox"):
            if deleting(sandbox) or sandbox["spec"].get("suspended"):
                continue
            for reference in references.references_of(sandbox):
                found = references.resolve(reference, self._store)
                if found is not None and ResourceKey.of(found) == key:
                    yield sandbox

    def _resolve(self, reference: Reference, missing: dict[str, str]) -> Document | None:
        found = references.resolve(reference, self._store)
        if found is None:
            missing[reference.target.kind] = (
                f"{reference.field}: {references.not_found(reference, self._store)}"
            )
        return found

    def _user(self, sandbox: Document, policy: Document, digest: str) -> PolicyUser:
        key = SandboxKey(sandbox["metadata"]["namespace"], sandbox["metadata"]["name"])
        published, answer = self._publisher.current(key), self._sessions.answer(key)
        if published is None or not _compiled_from(published, ResourceKey.of(policy), digest):
            return PolicyUser(name=str(key), enforces=False, detail="not in its bundle yet")
        if answer.refused is not None and answer.refused.digest == published.digest:
            return PolicyUser(name=str(key), enforces=False, detail=f"refused: {answer.refused.reason}")
        if not answer.connected:
            return PolicyUser(name=str(key), enforces=False, detail="its router is not connected")
        return PolicyUser(name=str(key), enforces=answer.digest == published.digest)


def _compiled_from(published: Published, policy: ResourceKey, digest: str) -> bool:
    sources = parse_payload(published.signed.payload).sources
    return any(
        (source.kind, source.namespace, source.name, source.digest)
        == (policy.kind, policy.namespace, policy.name, digest)
        for source in sources
    )


def _digest_of(policy: Document) -> str:
    try:
        spec = parse_spec(policy)
    except InvalidInputError:
        return ""
    if isinstance(spec, InferencePolicySpec):
        return bundles.inference_digest(spec)
    return bundles.tool_digest(spec)

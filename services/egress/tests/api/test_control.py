"""Control over a real channel: who may do what, and that it is on record."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars.egress.v1 import egress_pb2, egress_pb2_grpc
from kars_common.audit import AuditLog
from kars_common.errors import KarsError
from kars_common.policy.signing import dump_keys, key_id
from kars_common.rpc import PeerChannel, RpcServer, mapped_errors
from kars_common.spiffe import SpiffeId
from kars_common.svid import Svid
from kars_common.testing import MemoryAuthority, StaticSvidSource
from kars_egress import authorization
from kars_egress.allowlists import AllowlistStore
from kars_egress.api.control import EgressControlServicer
from kars_egress.app import EgressApp
from kars_egress.blocklist.service import Blocklist
from kars_egress.decisions.recording import DecisionRecorder
from kars_egress.decisions.spool import Spool
from kars_egress.enforcement import Enforcement
from kars_egress.names.serving import NameServers
from kars_egress.policy import artefacts
from kars_egress.policy.sandboxes import SandboxId
from kars_egress.settings import EgressSettings
from kars_egress.xds.snapshot import Snapshot
from kars_egress.xds.subscription import Subscriptions
from kars_egress.xds.topology import Place

REF = egress_pb2.SandboxRef(namespace="team", name="writer")
SANDBOX = SandboxId("team", "writer")


class Service:
    """The control server with everything but Envoy."""

    def __init__(self, directory: Path) -> None:
        self.authority = MemoryAuthority()
        self.signer = Ed25519PrivateKey.generate()
        public = self.signer.public_key()
        (directory / "keys.json").write_bytes(dump_keys({key_id(public): public}))
        self.audit = AuditLog.open(
            directory / "audit", "spiffe://kars.local/svc/egress", Ed25519PrivateKey.generate()
        )
        self.snapshot = Snapshot()
        self.enforcement = Enforcement(
            self.snapshot,
            Place(resolver=("203.0.113.53", 53), log_file=str(directory / "requests.log"), roots_file=""),
            trust_domain="kars.local",
            directory=directory / "sandboxes",
            clock_s=time.time,
            names=NameServers(),
            credential=lambda _: None,
        )
        self.subscriptions = Subscriptions()
        blocklist = Blocklist([], directory / "feeds", self.snapshot, time.time)
        blocklist.load()
        spool = Spool(directory / "requests.log", directory / "cursor")
        self.decisions = DecisionRecorder(spool, self.audit, lambda: None)
        self.server = RpcServer(
            StaticSvidSource(self.authority.service("egress")), authorization.CONTROL, "127.0.0.1:0"
        )
        servicer = EgressControlServicer(
            self.enforcement,
            self.subscriptions,
            blocklist,
            self.decisions,
            self.audit,
            allowlists=AllowlistStore(directory / "allowlists", directory / "keys.json"),
            max_approval_s=3600,
            max_learning_s=600,
            clock_s=time.time,
        )
        self.server.add(egress_pb2_grpc.add_EgressControlServicer_to_server, servicer)
        self.port = 0

    async def call(self, svid: Svid, what: Callable[[Any], Awaitable[Any]]) -> Any:
        channel = PeerChannel(
            StaticSvidSource(svid),
            f"127.0.0.1:{self.port}",
            SpiffeId.service("kars.local", "egress").dns_name,
        )
        try:
            with mapped_errors():
                return await what(channel.stub(egress_pb2_grpc.EgressControlStub))
        finally:
            await channel.close()

    async def as_operator(self, what: Callable[[Any], Awaitable[Any]]) -> Any:
        return await self.call(self.authority.operator("olga"), what)

    async def as_controller(self, what: Callable[[Any], Awaitable[Any]]) -> Any:
        return await self.call(self.authority.service("controller"), what)

    def kinds(self) -> list[object]:
        return [record["type"] for record in self.audit.records()]


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    made = Service(tmp_path)
    made.port = await made.server.start()
    yield made
    await made.server.stop(0)
    await made.audit.close()


async def apply(service: Service, *hosts: str) -> None:
    targets = [egress_pb2.AllowedTarget(host=host) for host in hosts]
    await service.as_controller(
        lambda stub: stub.ApplySandbox(egress_pb2.ApplySandboxRequest(sandbox=REF, targets=targets))
    )


def grant(seconds: float = 60, **fields: Any) -> egress_pb2.GrantApprovalRequest:
    request = egress_pb2.GrantApprovalRequest(
        **{
            "sandbox": REF,
            "id": "a",
            "targets": [egress_pb2.AllowedTarget(host="b.test")],
            "reason": "why",
            **fields,
        }
    )
    request.ttl.FromMilliseconds(int(seconds * 1000))
    return request


async def test_every_change_is_on_record_with_who_made_it(service: Service) -> None:
    await apply(service, "a.test")
    await service.as_operator(lambda stub: stub.GrantApproval(grant()))
    revoke = egress_pb2.RevokeApprovalRequest(sandbox=REF, id="a")
    await service.as_operator(lambda stub: stub.RevokeApproval(revoke))
    learn = egress_pb2.StartLearningRequest(sandbox=REF)
    learn.ttl.FromSeconds(5)
    await service.as_operator(lambda stub: stub.StartLearning(learn))
    await service.as_operator(lambda stub: stub.Enforce(egress_pb2.EnforceRequest(sandbox=REF)))
    await service.as_controller(lambda stub: stub.RemoveSandbox(egress_pb2.RemoveSandboxRequest(sandbox=REF)))
    assert service.kinds() == [
        "egress.policy.applied",
        "egress.approval.granted",
        "egress.approval.revoked",
        "egress.learning.started",
        "egress.learning.ended",
        "egress.policy.removed",
    ]
    callers = [record["caller"] for record in service.audit.records()]
    assert callers[1] == "spiffe://kars.local/operator/olga"


async def test_a_wrong_allowlist_changes_nothing_and_names_every_wrong_entry(service: Service) -> None:
    await apply(service, "a.test")
    with pytest.raises(KarsError) as refused:
        await apply(service, "c.test", "*", "10.0.0.1")
    assert refused.value.reason == "egress_policy_invalid"
    assert [violation.field for violation in refused.value.violations] == ["targets[1]", "targets[2]"]
    assert [str(entry.pattern) for entry in service.enforcement.get(SANDBOX).entries] == ["a.test"]


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (grant(0.5), "approval_ttl_invalid"),
        (grant(3601), "approval_ttl_invalid"),
        (grant(targets=[]), "approval_invalid"),
        (grant(reason=""), "approval_invalid"),
        (grant(reason="x" * 513), "approval_invalid"),
        (grant(id="Not An Id"), "approval_invalid"),
        (grant(targets=[egress_pb2.AllowedTarget(host="*")]), "egress_policy_invalid"),
        (grant(targets=[egress_pb2.AllowedTarget(host=f"{n}.test") for n in range(17)]), "approval_invalid"),
        (grant(sandbox=egress_pb2.SandboxRef(namespace="team", name="nobody")), "sandbox_not_found"),
    ],
)
async def test_an_approval_has_bounds(
    service: Service, request_: egress_pb2.GrantApprovalRequest, reason: str
) -> None:
    await apply(service)
    with pytest.raises(KarsError) as refused:
        await service.as_operator(lambda stub: stub.GrantApproval(request_))
    assert refused.value.reason == reason
    assert service.enforcement.get(SANDBOX).approvals == ()


async def test_a_sandbox_changes_nothing(service: Service) -> None:
    await apply(service)
    for call in (
        lambda stub: stub.GrantApproval(grant()),
        lambda stub: stub.StartLearning(egress_pb2.StartLearningRequest(sandbox=REF)),
        lambda stub: stub.ApplySandbox(egress_pb2.ApplySandboxRequest(sandbox=REF)),
        lambda stub: stub.RemoveSandbox(egress_pb2.RemoveSandboxRequest(sandbox=REF)),
    ):
        with pytest.raises(KarsError) as refused:
            await service.call(service.authority.sandbox("team", "writer"), call)
        assert refused.value.reason == "caller_not_authorized"


async def test_explain_names_the_rule_and_the_next_step(service: Service) -> None:
    await apply(service, "*.a.test")

    async def explain(url: str) -> egress_pb2.ExplainUrlResponse:
        request = egress_pb2.ExplainUrlRequest(sandbox=REF, url=url)
        answer: egress_pb2.ExplainUrlResponse = await service.as_operator(
            lambda stub: stub.ExplainUrl(request)
        )
        return answer

    allowed = await explain("https://x.A.test./path")
    assert (allowed.allowed, allowed.reason, allowed.rule) == (True, "allowlist", "https://*.a.test:443")
    assert (allowed.host, allowed.port) == ("x.a.test", 443)
    refused = await explain("https://b.test/")
    assert (refused.allowed, refused.reason) == (False, "not_in_allowlist")
    assert refused.next_step.startswith("ask an operator: kars egress -n team writer approve b.test:443")
    odd = await explain("https://b.test\\.a.test/")
    assert (odd.allowed, odd.reason) == (False, "url_invalid")


async def test_status_says_offline_while_no_envoy_is_connected(service: Service) -> None:
    await apply(service, "a.test")
    request = egress_pb2.GetSandboxStatusRequest(sandbox=REF)
    status = await service.as_operator(lambda stub: stub.GetSandboxStatus(request))
    assert status.distribution == egress_pb2.DISTRIBUTION_OFFLINE
    assert status.digest.startswith("sha256:")
    assert not status.HasField("learning_until")


async def test_policies_survive_a_restart_and_a_broken_file_closes_only_its_sandbox(
    service: Service, tmp_path: Path
) -> None:
    await apply(service, "a.test")
    await service.as_operator(lambda stub: stub.GrantApproval(grant(60)))
    (tmp_path / "sandboxes" / "broken.json").write_bytes(b"{")
    again = Enforcement(
        Snapshot(),
        Place(resolver=("203.0.113.53", 53), log_file="/dev/null", roots_file=""),
        trust_domain="kars.local",
        directory=tmp_path / "sandboxes",
        clock_s=lambda: time.time() + 61,
        names=NameServers(),
        credential=lambda _: None,
    )
    again.load()
    policy = again.get(SANDBOX)
    assert [str(entry.pattern) for entry in policy.entries] == ["a.test"]
    assert policy.approvals == (), "what ended while nobody ran stays ended"


async def test_every_method_has_a_rule_and_every_rule_a_method(tmp_path: Path) -> None:
    settings = EgressSettings(
        state_dir=tmp_path, svid_dir=tmp_path, envoy_svid_dir=tmp_path, resolver="203.0.113.53:53"
    )
    authority = MemoryAuthority()
    app = EgressApp(
        settings,
        StaticSvidSource(authority.service("egress")),
        StaticSvidSource(authority.service("egress-proxy")),
    )
    for server in (app.control_server, app.proxy_server):
        assert server.ungoverned() == (frozenset(), frozenset())
    await app.audit.close()


def publish(
    service: Service, directory: Path, layer: bytes, signer: Ed25519PrivateKey | None = None
) -> egress_pb2.AllowlistRef:
    """Put an artefact where the service looks for it."""
    layout = directory / "allowlists" / "registry.test" / "team" / "writer"
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    manifest = artefacts.manifest(layer)
    for data in (layer, manifest):
        (blobs / artefacts.digest(data).removeprefix("sha256:")).write_bytes(data)
    digest = artefacts.digest(manifest)
    (layout / f"{digest.replace(':', '-')}.sig").write_bytes(
        artefacts.sign(manifest, signer or service.signer)
    )
    return egress_pb2.AllowlistRef(registry="registry.test", repository="team/writer", digest=digest)


async def apply_signed(service: Service, reference: egress_pb2.AllowlistRef) -> None:
    request = egress_pb2.ApplySandboxRequest(sandbox=REF, allowlist=reference)
    await service.as_controller(lambda stub: stub.ApplySandbox(request))


def layer(generation: int, *hosts: str) -> bytes:
    return artefacts.serialise(artefacts.Allowlist(generation, tuple((host, 443) for host in hosts)))


async def test_a_signed_allowlist_counts_and_an_older_one_does_not(service: Service, tmp_path: Path) -> None:
    older = publish(service, tmp_path, layer(1, "old.test"))
    await apply_signed(service, older)
    await apply_signed(service, publish(service, tmp_path, layer(2, "a.test", "b.test")))
    assert [str(entry.pattern) for entry in service.enforcement.get(SANDBOX).entries] == ["a.test", "b.test"]
    await apply(service, "c.test")
    with pytest.raises(KarsError) as refused:
        await apply_signed(service, older)
    assert refused.value.reason == "allowlist_rollback"
    assert [str(entry.pattern) for entry in service.enforcement.get(SANDBOX).entries] == ["c.test"]


async def test_what_is_wrong_with_a_signed_allowlist_leaves_the_last_one(
    service: Service, tmp_path: Path
) -> None:
    await apply_signed(service, publish(service, tmp_path, layer(1, "a.test")))
    good = publish(service, tmp_path, layer(2, "b.test"))
    blob = (
        tmp_path / "allowlists/registry.test/team/writer/blobs/sha256" / good.digest.removeprefix("sha256:")
    )
    cases = {
        "allowlist_signature_invalid": publish(
            service, tmp_path, layer(3, "b.test"), Ed25519PrivateKey.generate()
        ),
        "allowlist_not_canonical": publish(service, tmp_path, layer(3, "b.test") + b"# more\n"),
        "allowlist_not_found": egress_pb2.AllowlistRef(
            registry="registry.test", repository="team/writer", digest="sha256:" + "0" * 64
        ),
        "allowlist_ref_invalid": egress_pb2.AllowlistRef(registry="..", repository="..", digest=good.digest),
    }
    for reason, reference in cases.items():
        with pytest.raises(KarsError) as refused:
            await apply_signed(service, reference)
        assert refused.value.reason == reason
    blob.write_bytes(blob.read_bytes().replace(b"}", b" }", 1))
    with pytest.raises(KarsError) as refused:
        await apply_signed(service, good)
    assert refused.value.reason == "allowlist_digest_mismatch"
    assert [str(entry.pattern) for entry in service.enforcement.get(SANDBOX).entries] == ["a.test"]

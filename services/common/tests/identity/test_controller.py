"""The controller's authority as an identity source: attest, persist, renew, and every way it goes wrong."""

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kars.identity.v1 import identity_pb2, identity_pb2_grpc
from kars_common.errors import UnauthenticatedError, UnavailableError
from kars_common.identity import ControllerSvidSource, JoinToken, KubernetesToken, stored
from kars_common.rpc import ANY_IDENTITY, ANYONE, AuthorizationTable, RpcServer, caller
from kars_common.spiffe import SpiffeId
from kars_common.tasks import Backoff
from kars_common.testing import MemoryAuthority, StaticSvidSource

WRITER = SpiffeId.sandbox("kars.local", "team", "writer")
SERVICE = "kars.identity.v1.WorkloadIdentity"


class Issuer(identity_pb2_grpc.WorkloadIdentityServicer):
    """A controller's identity service over a memory authority."""

    def __init__(self, authority: MemoryAuthority) -> None:
        self.authority = authority
        self.tokens: dict[str, SpiffeId] = {}
        self.lifetime = timedelta(hours=1)
        self.attested: list[str] = []
        self.renewed = 0
        self.renewed_event = asyncio.Event()
        self.fail_renewals = 0
        self.backdated = timedelta(milliseconds=10)

    async def Attest(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.attested.append(request.join_token or request.kubernetes_token)
        identity = self.tokens.pop(request.join_token or request.kubernetes_token, None)
        if identity is None:
            raise UnauthenticatedError("attestation_failed", "unknown token")
        return identity_pb2.AttestResponse(svid=self._issue(request.csr_pem, identity))

    async def Renew(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.fail_renewals:
            self.fail_renewals -= 1
            raise UnavailableError("database_busy", "not now")
        answer = identity_pb2.RenewResponse(svid=self._issue(request.csr_pem, caller(context)))
        self.renewed += 1
        self.renewed_event.set()
        return answer

    async def GetTrustBundle(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError

    def _issue(self, csr_pem: str, identity: SpiffeId) -> identity_pb2.Svid:
        chain = self.authority.sign(
            csr_pem.encode(),
            identity,
            lifetime=self.lifetime,
            issued_at=datetime.now(UTC) - self.backdated,
        )
        return identity_pb2.Svid(
            spiffe_id=str(identity),
            certificate_chain_pem=chain.decode(),
            trust_bundle_pem=self.authority.trust_bundle_pem.decode(),
        )


class Platform:
    """An issuer behind its two listeners, and the files that a workload is given."""

    def __init__(self, issuer: Issuer, bootstrap_port: int, main_port: int, directory: Path) -> None:
        self.issuer = issuer
        self.endpoints = (f"127.0.0.1:{bootstrap_port}", f"127.0.0.1:{main_port}")
        self.directory = directory
        self.token = directory / "join-token"
        self.pinned = directory / "pinned.pem"
        self.pinned.write_bytes(issuer.authority.trust_bundle_pem)

    def hand_out(self, token: str, identity: SpiffeId = WRITER) -> None:
        self.issuer.tokens[token] = identity
        write_private(self.token, token)

    def source(self, **options: Any) -> ControllerSvidSource:
        arguments: dict[str, Any] = {
            "bootstrap_endpoint": self.endpoints[0],
            "controller_endpoint": self.endpoints[1],
            "trust_bundle_file": self.pinned,
            "attestation": JoinToken(self.token),
            "state_directory": self.directory / "svid",
            "backoff": Backoff(first_s=0.01, most_s=0.05),
        }
        return ControllerSvidSource(WRITER, **(arguments | options))


def write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        file.write(text)


@contextlib.asynccontextmanager
async def running(source: ControllerSvidSource) -> AsyncIterator[ControllerSvidSource]:
    task = asyncio.create_task(source.run())
    try:
        yield source
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    issuer = Issuer(MemoryAuthority())
    source = StaticSvidSource(issuer.authority.service("controller"))
    bootstrap = RpcServer.bootstrap(
        source, AuthorizationTable({f"{SERVICE}/Attest": [ANYONE]}), "127.0.0.1:0"
    )
    main = RpcServer(source, AuthorizationTable({f"{SERVICE}/Renew": [ANY_IDENTITY]}), "127.0.0.1:0")
    for server in (bootstrap, main):
        server.add(identity_pb2_grpc.add_WorkloadIdentityServicer_to_server, issuer)
    ports = await bootstrap.start(), await main.start()
    yield Platform(issuer, *ports, tmp_path)
    await asyncio.gather(bootstrap.stop(0), main.stop(0))


async def test_join_token_gives_an_identity_and_is_gone(platform: Platform) -> None:
    platform.hand_out("t1")
    async with running(platform.source()) as source:
        svid = await asyncio.wait_for(source.wait_changed(None), 5)
    assert svid.spiffe_id == WRITER
    assert not platform.token.exists()
    kept = platform.directory / "svid" / "svid.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700


async def test_no_identity_before_attestation(platform: Platform) -> None:
    with pytest.raises(UnavailableError) as caught:
        platform.source().current()
    assert caught.value.reason == "svid_unavailable"


async def test_restart_uses_the_stored_identity_without_a_token(platform: Platform) -> None:
    platform.hand_out("t1")
    async with running(platform.source()) as source:
        svid = await asyncio.wait_for(source.wait_changed(None), 5)
    assert platform.source().current() == svid
    assert platform.issuer.attested == ["t1"]


async def test_expired_stored_identity_is_not_used(platform: Platform) -> None:
    old = platform.issuer.authority.issue(WRITER, issued_at=datetime.now(UTC) - timedelta(hours=2))
    stored.save(platform.directory / "svid", old)
    with pytest.raises(UnavailableError):
        platform.source().current()


async def test_stored_identity_of_another_authority_is_not_used(platform: Platform) -> None:
    stored.save(platform.directory / "svid", MemoryAuthority().issue(WRITER))
    with pytest.raises(UnavailableError):
        platform.source().current()


async def test_stored_identity_of_another_workload_is_not_used(platform: Platform) -> None:
    stored.save(platform.directory / "svid", platform.issuer.authority.sandbox("team", "other"))
    with pytest.raises(UnavailableError):
        platform.source().current()


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b'{"certificateChain":1}', b"\xff\x00"])
async def test_damaged_stored_identity_is_attested_anew(platform: Platform, damage: bytes) -> None:
    platform.hand_out("t1")
    write_private(platform.directory / "svid.json", "")
    (platform.directory / "svid").mkdir(mode=0o700)
    write_private(platform.directory / "svid" / "svid.json", "")
    (platform.directory / "svid" / "svid.json").write_bytes(damage)
    async with running(platform.source()) as source:
        assert (await asyncio.wait_for(source.wait_changed(None), 5)).spiffe_id == WRITER


async def test_stored_identity_open_to_others_is_not_used(platform: Platform) -> None:
    stored.save(platform.directory / "svid", platform.issuer.authority.issue(WRITER))
    (platform.directory / "svid" / "svid.json").chmod(0o644)
    with pytest.raises(UnavailableError):
        platform.source().current()


async def test_renews_at_half_life_with_a_fresh_key(platform: Platform) -> None:
    platform.issuer.lifetime = timedelta(seconds=4)
    platform.hand_out("t1")
    async with running(platform.source()) as source:
        first = await asyncio.wait_for(source.wait_changed(None), 5)
        platform.issuer.lifetime = timedelta(hours=1)
        second = await asyncio.wait_for(source.wait_changed(first), 10)
    assert second.private_key_pem != first.private_key_pem
    assert platform.issuer.attested == ["t1"]


async def test_authority_that_issues_past_half_life_is_not_hammered(platform: Platform) -> None:
    platform.issuer.backdated = timedelta(minutes=50)
    platform.hand_out("t1")
    async with running(platform.source()) as source:
        await asyncio.wait_for(source.wait_changed(None), 5)
        await asyncio.wait_for(platform.issuer.renewed_event.wait(), 5)
        first = platform.issuer.renewed
        await asyncio.sleep(0.3)  # a loop without a pause renews dozens of times in it
    assert platform.issuer.renewed - first <= 1


async def test_failing_renewals_are_retried_while_the_identity_stays_in_use(platform: Platform) -> None:
    platform.issuer.lifetime = timedelta(seconds=4)
    platform.issuer.fail_renewals = 3
    platform.hand_out("t1")
    async with running(platform.source()) as source:
        first = await asyncio.wait_for(source.wait_changed(None), 5)
        second = await asyncio.wait_for(source.wait_changed(first), 10)
    assert second.issued_at < first.expires_at
    assert platform.issuer.fail_renewals == 0


async def test_refused_token_is_sent_once_and_a_new_one_is_read(platform: Platform) -> None:
    write_private(platform.token, "forged")
    async with running(platform.source()) as source:
        async with asyncio.timeout(5):
            while not platform.issuer.attested:
                await asyncio.sleep(0.01)
            for _ in range(20):  # many back-offs long
                await asyncio.sleep(0.01)
        assert platform.issuer.attested == ["forged"]
        platform.hand_out("t2")
        await asyncio.wait_for(source.wait_changed(None), 5)
    assert platform.issuer.attested == ["forged", "t2"]


async def test_new_token_helps_when_the_authority_was_replaced(platform: Platform, tmp_path: Path) -> None:
    platform.issuer.lifetime = timedelta(seconds=4)
    platform.hand_out("t1")
    async with running(platform.source()) as source:
        first = await asyncio.wait_for(source.wait_changed(None), 5)
        platform.issuer.fail_renewals = 10**6
        platform.issuer.lifetime = timedelta(hours=1)
        platform.hand_out("t2")
        second = await asyncio.wait_for(source.wait_changed(first), 10)
    assert second.spiffe_id == WRITER
    assert platform.issuer.attested == ["t1", "t2"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
async def test_token_open_to_others_is_not_sent(platform: Platform, mode: int) -> None:
    platform.hand_out("t1")
    platform.token.chmod(mode)
    with pytest.raises(UnavailableError) as caught:
        JoinToken(platform.token).request(b"csr")
    assert caught.value.reason == "attestation_unavailable"


async def test_token_behind_a_symlink_is_not_sent(platform: Platform, tmp_path: Path) -> None:
    platform.hand_out("t1")
    link = tmp_path / "link"
    link.symlink_to(platform.token)
    with pytest.raises(UnavailableError):
        JoinToken(link).request(b"csr")


async def test_token_is_not_shown_to_a_controller_outside_the_pinned_roots(platform: Platform) -> None:
    platform.hand_out("t1")
    platform.pinned.write_bytes(MemoryAuthority().trust_bundle_pem)
    source = platform.source()
    with pytest.raises(UnavailableError):
        await source._refresh()
    assert platform.issuer.attested == []
    assert platform.token.exists()


async def test_identity_other_than_asked_for_is_refused(platform: Platform) -> None:
    platform.hand_out("t1", SpiffeId.sandbox("kars.local", "team", "other"))
    source = platform.source()
    with pytest.raises(UnavailableError) as caught:
        await source._refresh()
    assert caught.value.reason == "svid_answer_invalid"
    with pytest.raises(UnavailableError):
        source.current()


async def test_kubernetes_token_is_read_again_and_kept(platform: Platform, tmp_path: Path) -> None:
    token = tmp_path / "sa-token"
    token.write_text("jwt-1\n")
    platform.issuer.tokens["jwt-1"] = WRITER
    async with running(platform.source(attestation=KubernetesToken(token))) as source:
        await asyncio.wait_for(source.wait_changed(None), 5)
    assert token.exists()

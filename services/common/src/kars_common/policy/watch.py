"""Keep one sandbox's policy in force: watch the controller, verify, apply, keep, answer.

    watch = PolicyWatch(channel, ("team", "writer"), keys, state / "policy", engine.swap)
    watch.load()             # the last good bundle, controller or not
    await watch.run()        # a task of the service, for ever

A bundle that is refused leaves the one in force untouched and is answered with its reason. Knows
nothing of what rules mean: `apply` compiles and swaps, or raises.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from kars.policy.v1 import policy_pb2, policy_pb2_grpc

from kars_common.errors import KarsError, UnavailableError, clean_text
from kars_common.policy import bundles, signing
from kars_common.policy.errors import PolicyRefusedError, Refusal
from kars_common.policy.store import PolicyStore
from kars_common.rpc.channel import PeerChannel
from kars_common.tasks import Backoff

_LOG = logging.getLogger(__name__)
_MAX_NACK_CHARS = 512
_SUBSCRIBE_TIMEOUT_S = 10.0
_ACK_TIMEOUT_S = 10.0
_STEADY_S = 30.0

Apply = Callable[[policy_pb2.PolicyBundle, bytes], None]
"""Compiles a verified bundle (with its payload) and swaps it in; raises to refuse it."""


@dataclass(frozen=True, kw_only=True)
class InForceState:
    """The bundle that is enforced at this moment."""

    version: int
    digest: str
    payload: bytes
    bundle: policy_pb2.PolicyBundle
    since: datetime
    last_known_good: bool
    """Read from disk, and no controller has confirmed it since start."""


class PolicyWatch:
    """Watches the policy of one sandbox. One `run` at a time."""

    def __init__(
        self,
        channel: PeerChannel,
        sandbox: tuple[str, str],
        keys: Mapping[str, Ed25519PublicKey],
        store_path: Path,
        apply: Apply,
        *,
        admin_endpoint: str = "",
        backoff: Backoff | None = None,
    ) -> None:
        """Describe the watch; nothing is read or sent yet.

        Args:
            channel: to the controller.
            sandbox: namespace and name.
            keys: trusted signing keys by key id.
            store_path: directory for the last good bundle.
            apply: compiles and swaps; called in the event loop, in order, never twice at once.
            admin_endpoint: `host:port` of this process's own gRPC server, told to operators.
            backoff: waits between attempts; None for 0.2 to 30 seconds.
        """
        self._channel = channel
        self._sandbox = sandbox
        self._keys = keys
        self._store = PolicyStore(store_path)
        self._apply = apply
        self._admin_endpoint = admin_endpoint
        self._backoff = backoff or Backoff()
        self._in_force: InForceState | None = None
        self._last_nack: policy_pb2.Nack | None = None
        self._changed = asyncio.Event()
        self._stub = channel.stub(policy_pb2_grpc.PolicyDiscoveryStub)

    @property
    def in_force(self) -> InForceState | None:
        """What is enforced now; None when nothing is (everything must be denied)."""
        return self._in_force

    @property
    def last_nack(self) -> policy_pb2.Nack | None:
        """The last refusal since start."""
        return self._last_nack

    def load(self) -> InForceState | None:
        """Bring the kept bundle into force if it still verifies and applies; blocks for one read."""
        signed = self._store.load()
        if signed is None:
            return None
        try:
            self._bring_into_force(signed, last_known_good=True)
        except PolicyRefusedError as refused:
            _LOG.error("kept policy refused", extra={"reason": refused.reason})
        return self._in_force

    async def wait_in_force(self) -> InForceState:
        """Wait until some bundle is in force and return it."""
        while self._in_force is None:
            self._changed.clear()
            await self._changed.wait()
        return self._in_force

    async def run(self) -> None:
        """Follow the controller for ever; ends only by cancellation."""
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            try:
                await self._follow_until_renewed()
                self._backoff.reset()  # moved to a channel with the new SVID: nothing failed
                continue
            except grpc.aio.AioRpcError as failure:
                _LOG.warning("policy watch interrupted", extra={"code": failure.code().name})
            except (KarsError, TimeoutError, asyncio.InvalidStateError) as error:
                _LOG.warning("policy watch interrupted", extra={"error": clean_text(str(error))})
            if loop.time() - started > _STEADY_S:
                self._backoff.reset()
            await self._backoff.wait()

    async def _follow_until_renewed(self) -> None:
        """Follow one stream; return when there is a new SVID, so that the next stream proves that one."""
        source = self._channel.source
        renewed = asyncio.create_task(source.wait_changed(source.current()), name="await new svid")
        follow = asyncio.create_task(self._follow_one_stream(), name="follow policy stream")
        try:
            await asyncio.wait({renewed, follow}, return_when=asyncio.FIRST_COMPLETED)
            if follow.done():
                follow.result()
            else:
                renewed.result()
        finally:
            renewed.cancel()
            follow.cancel()
            await asyncio.gather(renewed, follow, return_exceptions=True)

    async def _follow_one_stream(self) -> None:
        call = self._stub.Watch()
        try:
            async with asyncio.timeout(_SUBSCRIBE_TIMEOUT_S):
                await call.write(policy_pb2.WatchRequest(subscribe=self._subscribe()))
            while isinstance(response := await call.read(), policy_pb2.WatchResponse):
                answer = await self._answer(response.bundle)
                async with asyncio.timeout(_ACK_TIMEOUT_S):
                    await call.write(answer)
                self._backoff.reset()
        finally:
            call.cancel()
        raise UnavailableError("policy_stream_ended", "the controller ended the policy stream")

    async def _answer(self, signed: policy_pb2.SignedBundle) -> policy_pb2.WatchRequest:
        try:
            state = self._bring_into_force(signed, last_known_good=False)
        except PolicyRefusedError as refused:
            return policy_pb2.WatchRequest(nack=self._refuse(signed, refused))
        try:
            await asyncio.to_thread(self._store.save, signed, state.version)
        except OSError as exc:
            # It is enforced all the same: less durable beats less current.
            _LOG.error("policy not kept on disk", extra={"error": exc.strerror, "version": state.version})
        return policy_pb2.WatchRequest(ack=policy_pb2.Ack(version=state.version, digest=state.digest))

    def _bring_into_force(self, signed: policy_pb2.SignedBundle, *, last_known_good: bool) -> InForceState:
        held = self._in_force
        bundle = signing.verify(signed, self._keys, self._sandbox, held.version if held else 1)
        if held is not None and bundle.version == held.version:
            return self._confirm(held, signed.digest, last_known_good=last_known_good)
        try:
            self._apply(bundle, signed.payload)
        except Exception as exc:  # the seam to the service's compiler: whatever it raises refuses the bundle
            _LOG.exception("policy does not compile", extra={"version": bundle.version})
            raise PolicyRefusedError(Refusal.COMPILE_FAILED, clean_text(str(exc), _MAX_NACK_CHARS)) from exc
        self._in_force = InForceState(
            version=bundle.version,
            digest=signed.digest,
            payload=signed.payload,
            bundle=bundle,
            since=datetime.now(UTC),
            last_known_good=last_known_good,
        )
        self._changed.set()
        _LOG.info("policy in force", extra={"version": bundle.version, "digest": signed.digest})
        return self._in_force

    def _confirm(self, held: InForceState, digest: str, *, last_known_good: bool) -> InForceState:
        if digest != held.digest:
            raise PolicyRefusedError(
                Refusal.VERSION_ROLLBACK, f"version {held.version} is in force with another digest"
            )
        self._in_force = replace(held, last_known_good=held.last_known_good and last_known_good)
        return self._in_force

    def _refuse(self, signed: policy_pb2.SignedBundle, refused: PolicyRefusedError) -> policy_pb2.Nack:
        held = self._in_force
        nack = policy_pb2.Nack(
            version=_unverified_version(signed),
            digest=signed.digest[:128],
            reason=refused.reason,
            message=clean_text(refused.message, _MAX_NACK_CHARS),
            in_force_digest=held.digest if held else "",
        )
        self._last_nack = nack
        _LOG.warning("policy refused", extra={"reason": nack.reason, "digest": nack.digest})
        return nack

    def _subscribe(self) -> policy_pb2.Subscribe:
        held = self._in_force
        return policy_pb2.Subscribe(
            sandbox=policy_pb2.SandboxRef(namespace=self._sandbox[0], name=self._sandbox[1]),
            current_version=held.version if held else 0,
            current_digest=held.digest if held else "",
            admin_endpoint=self._admin_endpoint,
        )


def _unverified_version(signed: policy_pb2.SignedBundle) -> int:
    """Read the version of a refused bundle, for the NACK only; 0 when it cannot be read."""
    try:
        return bundles.parse_payload(signed.payload).version
    except PolicyRefusedError:
        return 0

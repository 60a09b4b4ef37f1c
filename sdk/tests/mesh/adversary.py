"""Two agents, and a network between them that does whatever it likes. Driven by Hypothesis and by the soak.

The invariants are checked at each delivery: what was delivered intact is decrypted to what was sent, once;
nothing else is ever accepted.
"""

import dataclasses
from pathlib import Path

from kars_sdk.mesh import ratchet_parts
from kars_sdk.mesh.errors import MeshError, ReplayedError
from kars_sdk.mesh.sessions import Opened
from kars_sdk.mesh.testing import Agent, Authority


@dataclasses.dataclass
class Sent:
    """One payload on the wire."""

    sender: Agent
    receiver: Agent
    payload: bytes
    text: bytes
    accepted: bool = False


class Adversary:
    """The network. Every method is one step."""

    def __init__(self, folder: Path) -> None:
        authority = Authority()
        self.agents = (Agent.create("alice", authority, folder), Agent.create("bob", authority, folder))
        self.wire: list[Sent] = []
        self.past: list[Sent] = []
        self.count = self.accepted = self.refused = 0

    def close(self) -> None:
        for agent in self.agents:
            agent.store.close()

    def send(self, who: int, size: int) -> None:
        """An agent writes; it knocks when it has no session. The window is kept as a client keeps it."""
        sender, receiver = self.agents[who], self.agents[1 - who]
        self.count += 1
        text = b"%d:" % self.count + bytes(size)
        if sender.sessions.has_session(receiver.name):
            payload = sender.sessions.seal(receiver.name, text)
        else:
            payload = sender.sessions.start(receiver.bundle(one_time=size % 2 == 0), receiver.name, text)
        self.wire.append(Sent(sender, receiver, payload, text))

    def deliver(self, index: int) -> None:
        """Any message that waits arrives, not only the next."""
        if not self.wire:
            return
        message = self.wire.pop(index % len(self.wire))
        self.past.append(message)
        if len(self.past) > 200:
            self.past.pop(0)
        self._arrives(message)

    def drop(self, index: int) -> None:
        """A message is lost, and may come back much later."""
        if self.wire:
            self.past.append(self.wire.pop(index % len(self.wire)))

    def again(self, index: int) -> None:
        """A message that was delivered or dropped comes (again)."""
        if self.past:
            self._arrives(self.past[index % len(self.past)])

    def flip(self, index: int, bit: int) -> None:
        """A copy with one bit changed comes; the true one still waits."""
        if self.wire:
            message = self.wire[index % len(self.wire)]
            at = bit // 8 % len(message.payload)
            changed = bytearray(message.payload)
            changed[at] ^= 1 << bit % 8
            self._refused(message, bytes(changed))

    def cut(self, index: int, length: int) -> None:
        """A copy comes that is too short."""
        if self.wire:
            message = self.wire[index % len(self.wire)]
            self._refused(message, message.payload[: length % len(message.payload)])

    def splice(self, index: int, other: int, at: int) -> None:
        """The beginning of one message comes with the end of another."""
        if len(self.wire) > 1:
            one, two = self.wire[index % len(self.wire)], self.wire[other % len(self.wire)]
            border = at % max(1, min(len(one.payload), len(two.payload)))
            joined = one.payload[:border] + two.payload[border:]
            if joined not in {one.payload, two.payload}:
                self._refused(one, joined)

    def reflect(self, index: int) -> None:
        """A message comes back to the one who sent it."""
        if self.wire:
            message = self.wire[index % len(self.wire)]
            self._refused(
                dataclasses.replace(message, sender=message.receiver, receiver=message.sender),
                message.payload,
            )

    def restart(self, who: int) -> None:
        """An agent is killed and starts from its disk."""
        self.agents[who].restart()

    def _arrives(self, message: Sent) -> None:
        receiver = message.receiver
        try:
            result = receiver.sessions.open(message.payload, sender=message.sender.name)
        except ReplayedError:
            assert message.accepted or self._out_of_window(message), (
                "a message that was never accepted is a replay"
            )
            self.refused += 1
            return
        except MeshError as exc:
            if not message.accepted and not self._out_of_window(message):
                raise AssertionError(f"lost what arrived intact: {exc.reason}") from exc
            self.refused += 1
            return
        assert isinstance(result, Opened)
        assert not message.accepted, "accepted twice"
        assert (result.payload, result.peer) == (message.text, message.sender.name), (
            "accepted what was not sent"
        )
        message.accepted = True
        self.accepted += 1

    def _out_of_window(self, message: Sent) -> bool:
        """Whether so much was sent since that keys for it need not be kept (the bounds that are promised)."""
        number = int(message.text.partition(b":")[0])
        return self.count - number >= ratchet_parts.MAX_SKIP // 2

    def _refused(self, message: Sent, payload: bytes) -> None:
        before = [each.dump() for each in message.receiver.sessions.of(message.sender.name)]
        try:
            message.receiver.sessions.open(payload, sender=message.sender.name)
        except MeshError:
            self.refused += 1
            assert [each.dump() for each in message.receiver.sessions.of(message.sender.name)] == before
            return
        raise AssertionError("accepted what was not sent")

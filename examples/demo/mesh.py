"""Rows about the mesh: two agents on two frameworks talk, nobody else reads it, a stranger gets nowhere."""

import base64
import json
import os
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from examples.demo.platform import Platform, wait_for
from examples.demo.proofs import Proof

REVIEWER = "reviewer"
STRANGER = "stranger"
BIG_FILE_BYTES = 20 * 1024 * 1024
_REFUSED_KNOCK = ("trust_below_threshold", "edge_missing")
_ETH_P_ALL = 3
_MAX_CAPTURED = 512 * 1024 * 1024


class Wire:
    """What went to and from one port of this machine, where we may look: the bytes of every packet."""

    def __init__(self, port: int) -> None:
        self.allowed = False
        self._port = port
        self._captured = bytearray()
        self._stop = threading.Event()

    @property
    def size(self) -> int:
        """Bytes that were captured."""
        return len(self._captured)

    def holds(self, secret: bytes) -> bool:
        """Whether a text was seen."""
        return secret in self._captured

    @contextmanager
    def listening(self) -> Iterator["Wire"]:
        """Capture for the length of the block; without the right to, capture nothing and say so."""
        try:
            tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        except PermissionError:
            yield self
            return
        self.allowed = True
        with tap:
            tap.bind(("lo", 0))
            tap.settimeout(0.2)
            reader = threading.Thread(target=self._read, args=(tap,), name="packet capture")
            reader.start()
            try:
                yield self
            finally:
                self._stop.set()
                reader.join()

    def _read(self, tap: socket.socket) -> None:
        while not self._stop.is_set() and len(self._captured) < _MAX_CAPTURED:
            try:
                packet = tap.recv(65_536 + 64)
            except TimeoutError:
                continue
            if self._port in _tcp_ports(packet):
                self._captured += packet


def _tcp_ports(packet: bytes) -> tuple[int, ...]:
    """Return the ports of a TCP packet over IPv4 in an Ethernet frame; none for any other."""
    if len(packet) < 38 or packet[12:14] != b"\x08\x00" or packet[23] != socket.IPPROTO_TCP:
        return ()
    start = 14 + 4 * (packet[14] & 15)
    return struct.unpack(">HH", packet[start : start + 4]) if len(packet) >= start + 4 else ()


def prove(
    platform: Platform, agent: str, manifests: Path, scratch: Path, step: Callable[[str], None]
) -> list[Proof]:
    """Let the agents talk, look at what others can see of it, and send a stranger.

    Args:
        platform: the running platform.
        agent: the sandbox that wrote the report.
        manifests: the folder of the quickstart's manifests.
        scratch: a folder for this run.
        step: says what happens now.
    """
    canary = f"mesh-canary-{secrets.token_hex(12)}"
    relay = json.loads(platform.kars("mesh", "status", "-o", "json"))["endpoint"]
    with Wire(int(relay.rpartition(":")[2])).listening() as wire:
        step(f"{agent} hands its report to {REVIEWER}, an agent on another framework")
        platform.run("connect", agent, "-m", "Send the incident report to the reviewer.")
        step("and a file of 20 MiB")
        big = _big_file(platform, agent)
        step(f"{REVIEWER} is stopped; a message is sent to it meanwhile")
        delivered_late, stored = _send_while_down(platform, agent, manifests, scratch, canary)
    step("a stranger knocks")
    return [
        _delivery(platform, agent, big, late=delivered_late),
        _secrecy(platform, wire, canary, big, stored),
        _stranger(platform, scratch, manifests),
    ]


def _big_file(platform: Platform, agent: str) -> Path:
    path = platform.pod(agent) / "workspace" / "big.bin"
    path.write_bytes(os.urandom(BIG_FILE_BYTES))
    path.chmod(0o644)
    _tool(platform, agent, "kars_mesh_transfer_file", to_agent=REVIEWER, file_path="/sandbox/big.bin")
    return path


def _send_while_down(
    platform: Platform, agent: str, manifests: Path, scratch: Path, canary: str
) -> tuple[bool, bytes]:
    """Return whether the message arrived after the receiver came back, and what the relay's store held."""
    documents = list(yaml.safe_load_all((manifests / "4-reviewer.yaml").read_text()))
    _apply_reviewer(platform, documents, manifests, suspended=True)
    wait_for("the reviewer to stop", lambda: not _mailbox(platform)["connected"], deadline_s=60)
    with (scratch / "late.json").open("wb") as said:
        sending = platform.start(said, "mesh", "send", agent, REVIEWER, f"for later: {canary}", "-o", "json")
        wait_for("the message at the relay", lambda: _mailbox(platform)["waiting"] > 0, deadline_s=30)
        stored = b"".join(path.read_bytes() for path in _store_files(platform))
        _apply_reviewer(platform, documents, manifests, suspended=False)
        sending.wait(60)

    def there() -> bool:
        inbox = _tool(platform, REVIEWER, "kars_mesh_inbox", unread_only=False, mark_read=False)
        return canary in json.dumps(inbox)

    return bool(wait_for("the message after the restart", there, deadline_s=60)), stored


def _delivery(platform: Platform, agent: str, big: Path, *, late: bool) -> Proof:
    incoming = platform.pod(REVIEWER) / "workspace" / "incoming"
    report = platform.pod(agent) / "workspace" / "reports" / "incident-report.md"
    same = [
        (incoming / source.name).is_file() and (incoming / source.name).read_bytes() == source.read_bytes()
        for source in (report, big)
    ]
    # What the model says about it proves nothing: the answer must lie in the asker's own inbox.
    inbox = _tool(platform, agent, "kars_mesh_inbox", unread_only=False, mark_read=False)
    answered = any(
        str(letter.get("from", "")).endswith(f"/{REVIEWER}") for letter in inbox.get("messages", ())
    )
    held = all(same) and answered and late
    return Proof(
        control="agent mesh",
        attack="a report, a question and 20 MiB to an agent on another framework; one while it is stopped",
        happened="report and file arrived whole; the question was answered; the late one came after its start"
        if held
        else f"files whole: {same}, answered: {answered}, delivered after the stop: {late}",
        held=held,
    )


def _secrecy(platform: Platform, wire: Wire, canary: str, big: Path, stored: bytes) -> Proof:
    secrets_sent = (canary.encode(), big.read_bytes()[4096 : 4096 + 32])
    in_store = any(secret in stored for secret in secrets_sent)
    decoy = f"/sandbox/{REVIEWER}".encode() in stored
    on_wire = any(wire.holds(secret) for secret in secrets_sent)
    looked = (
        f"and in {wire.size >> 20} MiB of packets" if wire.allowed else "(no right to capture packets here)"
    )
    fingerprints = platform.run("mesh", "verify", REVIEWER, "incident-reporter", "-o", "json")
    proved = fingerprints.returncode == 0
    enough = not wire.allowed or wire.size > BIG_FILE_BYTES
    return Proof(
        control="ciphertext only",
        attack="message and file are searched in the relay's store while the message waits there, " + looked,
        happened=f"absent in {len(stored) >> 10} KiB of store, where the receiver's name was found; "
        "both keys proved from the registration log"
        if not in_store and not on_wire and decoy and proved
        else f"in the store: {in_store}, in packets: {on_wire}, name found: {decoy}, keys proved: {proved}",
        held=not in_store and not on_wire and decoy and proved and enough,
    )


def _stranger(platform: Platform, scratch: Path, manifests: Path) -> Proof:
    documents = list(yaml.safe_load_all((manifests / "3-sandbox.yaml").read_text()))
    (sandbox,) = documents
    sandbox["metadata"] = {"name": STRANGER, "namespace": "default"}
    del sandbox["spec"]["governance"]["trustedPeers"]
    code = sandbox["spec"]["runtime"]["pydanticAi"]
    code["agentCode"]["local"] = {"path": str(manifests.parent / "agent")}
    code["entrypoint"] = code["entrypoint"][:4]
    path = scratch / "stranger.yaml"
    path.write_text(yaml.safe_dump(sandbox))
    platform.kars("apply", "-f", str(path), "--wait", timeout_s=180)
    without = _sent(platform)
    # It may write now, and be answered; the reviewer trusts it less than its threshold.
    graph = scratch / "graph.yaml"
    graph.write_text(yaml.safe_dump(_graph()))
    platform.kars("apply", "-f", str(graph))
    knocked: dict[str, Any] = {}

    def refused() -> bool:
        knocked.update(_sent(platform))
        return knocked.get("error") in _REFUSED_KNOCK

    wait_for("the stranger's knock", refused, deadline_s=60)
    inbox = _tool(platform, REVIEWER, "kars_mesh_inbox", unread_only=False, mark_read=False)
    heard = STRANGER in json.dumps(inbox)
    held = bool(without.get("error")) and knocked.get("error") in _REFUSED_KNOCK and not heard
    return Proof(
        control="stranger in the mesh",
        attack="a sandbox without an edge writes to the reviewer; then with an edge, but without its trust",
        happened=f"{without.get('error')}; KNOCK refused: {knocked.get('error')}"
        if held
        else f"{without}; {knocked}; heard: {heard}",
        held=held,
    )


def _graph() -> dict[str, Any]:
    """A TrustGraph that lets the stranger write, and the reviewer trust it a little."""
    keys = {name: Ed25519PrivateKey.generate() for name in (STRANGER, REVIEWER)}
    edges = [_edge(keys, STRANGER, REVIEWER, 1000), _edge(keys, REVIEWER, STRANGER, 100)]
    vertices = [
        {"id": name, "alg": "EdDSA", "publicKeyB64u": _b64u(key.public_key().public_bytes_raw())}
        for name, key in keys.items()
    ]
    return {
        "apiVersion": "kars.azure.com/v1alpha1",
        "kind": "TrustGraph",
        "metadata": {"name": "demo"},
        "spec": {"vertices": vertices, "edges": edges},
    }


def _edge(keys: dict[str, Ed25519PrivateKey], source: str, target: str, score: int) -> dict[str, Any]:
    issued = 1_700_000_000
    signed = "\n".join(("trustgraph.v1", source, target, str(score), str(issued), "", "")).encode()
    return {
        "from": source,
        "to": target,
        "score": score,
        "issuedAt": issued,
        "signature": _b64u(keys[source].sign(signed)),
    }


def _sent(platform: Platform) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        platform.run("mesh", "send", STRANGER, REVIEWER, "let me in", "-o", "json").stdout or "{}"
    )
    return found


def _tool(platform: Platform, sandbox: str, name: str, **arguments: object) -> dict[str, Any]:
    """Call a tool of an agent over chat, without its model."""
    said = platform.run("connect", sandbox, "-m", f"/{name} {json.dumps(arguments)}", timeout_s=150).stdout
    try:
        found = json.loads(said)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _apply_reviewer(
    platform: Platform, documents: list[dict[str, Any]], manifests: Path, *, suspended: bool
) -> None:
    for document in documents:
        if document["kind"] == "KarsSandbox":
            document["spec"]["suspended"] = suspended
    path = manifests / "4-reviewer.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    platform.kars("apply", "-f", str(path), timeout_s=120)


def _mailbox(platform: Platform) -> dict[str, Any]:
    boxes = json.loads(platform.run("mesh", "peers", "-o", "json").stdout or "[]")
    empty = {"connected": True, "waiting": 0}
    return next((box for box in boxes if box["peer"].endswith(f"/{REVIEWER}")), empty)


def _store_files(platform: Platform) -> list[Path]:
    return [path for path in (platform.home / "services" / "relay").rglob("*") if path.is_file()]


def _b64u(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

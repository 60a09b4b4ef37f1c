"""`kars mesh`: who may talk to whom, who is there, what waits, whose key is whose; never any contents."""

import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from kars.audit.v1 import audit_pb2
from kars.mesh.v1 import relay_pb2
from kars.policy.v1 import policy_pb2
from kars_common.errors import InvalidInputError
from kars_common.policy import parse_payload
from kars_common.spiffe import SpiffeId
from kars_sdk.mesh.identity import fingerprint
from kars_sdk.mesh.names import peer_name
from rich.markup import escape

from kars_cli import options, output, stubs
from kars_cli.exits import Exit
from kars_cli.mesh_log import Registered, RegistrationLog
from kars_cli.output import DataFormat
from kars_cli.session import Session, command

app = typer.Typer(help="Look at the mesh: encrypted messages between agents.", no_args_is_help=True)

Peer = Annotated[str, typer.Argument(metavar="PEER", help="Sandbox: NAME, NAMESPACE/NAME or its SPIFFE id.")]
OtherPeer = Annotated[
    str | None, typer.Argument(metavar="[OTHER]", help="A second sandbox.", show_default=False)
]
_MESH_RECORDS = ("mesh.delivered", "mesh.delivery_refused")


@app.command()
def status(form: options.DataOutput = DataFormat.TABLE) -> None:
    """Say how the relay is, and which policy it enforces."""
    found = _status()
    if form is not DataFormat.TABLE:
        output.data(found, form)
        return
    out = output.console()
    policy = f"policy version {found['policyVersion']}" if found["policyVersion"] else "[red]no policy[/]"
    out.print(f"relay {escape(found['relay'])} at {found['endpoint']}: {policy}, store {found['store']}")
    names = ("connectedPeers", "storedEnvelopes", "acceptedEnvelopes", "refusedEnvelopes", "ackedEnvelopes")
    output.table(
        ("Connected", "Waiting", "Accepted", "Refused", "Acknowledged"),
        [[str(found[name]) for name in names]],
    )


@app.command()
def peers(form: options.DataOutput = DataFormat.TABLE) -> None:
    """List who has a mailbox, who is connected, and how much waits."""
    found = _peers()
    if form is not DataFormat.TABLE:
        output.data(found, form)
    elif not found:
        output.console().print("nobody has a mailbox")
    else:
        rows = [
            (item["peer"], str(item["connected"]), str(item["waiting"]), str(item["bytes"])) for item in found
        ]
        output.table(("Peer", "Connected", "Waiting", "Bytes"), rows)


@app.command()
def trust(peer: OtherPeer = None, form: options.DataOutput = DataFormat.TABLE) -> None:
    """List the edges that the relay enforces at this moment; of one sandbox, when it is named."""
    found = _trust(peer)
    if form is not DataFormat.TABLE:
        output.data(found, form)
    elif not found:
        output.console().print("no edge: nobody may write to anybody")
    else:
        rows = [(item["from"], item["to"], str(item["score"]), item["until"] or "-") for item in found]
        output.table(("From", "To", "Score", "Until"), rows)


@app.command()
def inbox(
    peer: Peer,
    lines: Annotated[int, typer.Option("--tail", help="How many records.", min=1, max=1000)] = 20,
    form: options.DataOutput = DataFormat.TABLE,
) -> None:
    """Show what waits for a sandbox and what its router let in and out: from whom, how much, when.

    The messages themselves only the agent can read.
    """
    found = _inbox(peer, lines)
    if form is not DataFormat.TABLE:
        output.data(found, form)
        return
    output.console().print(f"{found['waiting']} envelopes ({found['bytes']} bytes) wait at the relay")
    rows = [
        (
            item["time"],
            item["direction"],
            item["peer"],
            str(item["envelopes"]),
            str(item["bytes"]),
            item["how"],
        )
        for item in found["records"]
    ]
    if rows:
        output.table(("Time", "Direction", "Peer", "Envelopes", "Bytes", "How"), rows)


@app.command()
def verify(peer: Peer, other: OtherPeer = None, form: options.DataOutput = DataFormat.TABLE) -> None:
    """Check a sandbox's key in the registration log; with OTHER, print the safety number of the two.

    Both agents see the same number when nobody stands between them. Exit code 2 when something does not fit.
    """
    found = _verify(peer, other)
    if form is not DataFormat.TABLE:
        output.data(found, form)
    else:
        out = output.console()
        for item in found["peers"]:
            word = "[green]verified[/]" if item["stated"] else "[bold red]not the key that was stated[/]"
            where = f"entry {item['index']} of {item['logSize']}"
            out.print(f"{escape(item['peer'])}: key {item['keyId']}, {where}: {word}", soft_wrap=True)
        if found["safetyNumber"]:
            out.print(f"safety number  {found['safetyNumber']}", soft_wrap=True)
    if not all(item["stated"] for item in found["peers"]):
        raise typer.Exit(Exit.USAGE)


@command
async def _status() -> dict[str, Any]:
    async with Session.open() as session:
        answer = await stubs.relay_status(session).GetStatus(relay_pb2.GetStatusRequest())
        return {
            "relay": answer.relay,
            "endpoint": session.relay_endpoint,
            "store": answer.store,
            "policyVersion": answer.policy_version,
            "policyDigest": answer.policy_digest,
            "connectedPeers": answer.connected_peers,
            "storedEnvelopes": answer.stored_envelopes,
            "storedBytes": answer.stored_bytes,
            "acceptedEnvelopes": answer.accepted_envelopes,
            "refusedEnvelopes": answer.refused_envelopes,
            "ackedEnvelopes": answer.acked_envelopes,
            "expiredEnvelopes": answer.expired_envelopes,
            "malformedFrames": answer.malformed_frames,
        }


@command
async def _peers() -> list[dict[str, Any]]:
    async with Session.open() as session:
        return await _mailboxes(session)


async def _mailboxes(session: Session) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after = ""
    while True:
        request = relay_pb2.ListMailboxesRequest(page_size=1000, after=after)
        page = (await stubs.relay_status(session).ListMailboxes(request)).mailboxes
        found += [
            {
                "peer": box.peer,
                "connected": box.connected,
                "waiting": box.stored_envelopes,
                "bytes": box.stored_bytes,
            }
            for box in page
        ]
        if len(page) < 1000:
            return found
        after = page[-1].peer


@command
async def _trust(peer: str | None) -> list[dict[str, Any]]:
    async with Session.open() as session:
        name = str(_named(session, peer)) if peer else ""
        answer = await stubs.relay_enforcement(session).GetInForce(policy_pb2.GetInForceRequest())
        payloads = [door.payload for door in answer.doors if door.payload]
        edges = [edge for payload in payloads for edge in parse_payload(payload).mesh.edges]
        return [
            {
                "from": edge.sender,
                "to": edge.recipient,
                "score": edge.score,
                "until": _time(edge.not_after.seconds) if edge.HasField("not_after") else None,
            }
            for edge in edges
            if not name or name in (edge.sender, edge.recipient)
        ]


@command
async def _inbox(peer: str, lines: int) -> dict[str, Any]:
    async with Session.open() as session:
        name = _named(session, peer)
        box = next((x for x in await _mailboxes(session) if x["peer"] == str(name)), None)
        namespace, sandbox = name.sandbox_ref or ("", "")
        log = stubs.audit(await session.router(namespace, sandbox))
        records: list[dict[str, Any]] = []
        seq = 0
        while True:
            page = await log.ListRecords(audit_pb2.ListRecordsRequest(start_seq=seq, page_size=1000))
            shown = (_shown(json.loads(line)) for line in page.records)
            records = [*records, *(item for item in shown if item is not None)][-lines:]
            if not page.next_seq:
                break
            seq = page.next_seq
        waiting = {"waiting": box["waiting"], "bytes": box["bytes"]} if box else {"waiting": 0, "bytes": 0}
        return {"peer": str(name), **waiting, "records": records}


def _shown(record: dict[str, Any]) -> dict[str, Any] | None:
    """Return what a record says about the mesh; None when it speaks of something else."""
    kind = record.get("type")
    sent = record.get("kind") == "mesh" and record.get("operation") == "send"
    if kind not in _MESH_RECORDS and not (sent and kind in ("call.settled", "call.denied")):
        return None
    return {
        "time": record.get("time"),
        "direction": "out" if sent else "in",
        "peer": record.get("peer", ""),
        "envelopes": record.get("envelopes", 0),
        "bytes": record.get("bytes", 0),
        "how": record.get("reason") or record.get("ending") or "delivered",
    }


@command
async def _verify(peer: str, other: str | None) -> dict[str, Any]:
    async with Session.open() as session:
        names = [_named(session, text) for text in (peer, other) if text]
        if len(set(names)) != len(names):
            raise InvalidInputError("peer_twice", "a sandbox has no safety number with itself")
        log = await RegistrationLog.open(session)
        found = [await log.find(str(name)) for name in names]
        plain = [_registered(item, stated=await log.stated(item)) for item in found]
        number = ""
        if len(found) == 2:
            one, two = found
            number = fingerprint(
                own=peer_name(one.peer),
                own_key=one.identity_key,
                peer=peer_name(two.peer),
                peer_key=two.identity_key,
            )
        return {"peers": plain, "safetyNumber": number}


def _registered(found: Registered, *, stated: bool) -> dict[str, Any]:
    return {
        "peer": found.peer,
        "keyId": found.key_id,
        "index": found.index,
        "logSize": found.log_size,
        "stated": stated,
    }


def _named(session: Session, text: str) -> SpiffeId:
    """Return the sandbox that a person means.

    Raises:
        InvalidInputError: `spiffe_id_invalid`.
    """
    if text.startswith("spiffe://"):
        return SpiffeId.parse(peer_name(text))
    namespace, slash, name = text.partition("/")
    return SpiffeId.sandbox(session.trust_domain, *((namespace, name) if slash else ("default", namespace)))


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

"""`kars mesh`: who may talk to whom, who is there, what waits, whose key is whose; never any contents."""

import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from kars.audit.v1 import audit_pb2
from kars.mesh.v1 import relay_pb2
from kars.policy.v1 import policy_pb2
from kars_common.errors import FailedPreconditionError, InvalidInputError
from kars_common.policy import parse_payload
from kars_common.spiffe import SpiffeId
from kars_sdk.mesh.identity import fingerprint
from kars_sdk.mesh.names import peer_name
from rich.markup import escape

from kars_cli import options, output, stubs
from kars_cli.chat import ChatClient
from kars_cli.commands.connect import opened
from kars_cli.exits import Exit
from kars_cli.mesh_log import Registered, RegistrationLog
from kars_cli.output import DataFormat
from kars_cli.session import Session, command

app = typer.Typer(help="Look at the mesh: encrypted messages between agents.", no_args_is_help=True)

Peer = Annotated[str, typer.Argument(metavar="PEER", help="Sandbox: NAME, NAMESPACE/NAME or its SPIFFE id.")]
OtherPeer = Annotated[
    str | None, typer.Argument(metavar="[OTHER]", help="A second sandbox.", show_default=False)
]
_CHAT_WAIT_S = 20.0
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
def send(
    sender: Annotated[
        str, typer.Argument(metavar="FROM", help="Sandbox whose agent sends: NAME or NAMESPACE/NAME.")
    ],
    recipient: Annotated[str, typer.Argument(metavar="TO", help="Sandbox that gets it, or its SPIFFE id.")],
    text: Annotated[str, typer.Argument(help="What to say.")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the answer.")] = False,
    form: options.DataOutput = DataFormat.TABLE,
) -> None:
    """Let an agent send a message, with its own key and under its own policy. Exit code 1: it was refused."""
    found = _send(sender, recipient, text, wait=wait)
    if form is not DataFormat.TABLE:
        output.data(found, form)
    elif "error" in found:
        reason, why = output.clean(str(found["error"])), output.clean(str(found.get("message", "")))
        output.console().print(
            f"[bold red]refused[/]: {escape(why)} [dim]\\[{escape(reason)}][/]", soft_wrap=True
        )
    else:
        answer = found.get("reply") or {}
        said = f": {output.clean(str(answer['content']))}" if "content" in answer else ""
        output.console().print(f"{found.get('status')}{escape(said)}", soft_wrap=True)
    if "error" in found:
        raise typer.Exit(Exit.REFUSED)


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
async def _send(sender: str, recipient: str, text: str, *, wait: bool) -> dict[str, Any]:
    arguments = {"to_agent": recipient, "content": text, "wait_for_reply": wait}
    async with Session.open() as session:
        namespace, name = _named(session, sender).sandbox_ref or ("", "")
        sandbox = policy_pb2.SandboxRef(namespace=namespace, name=name)
        client = await opened(session, sandbox, 0, _CHAT_WAIT_S)
        try:
            return await _tool(client, "kars_mesh_send", arguments)
        finally:
            await client.close()


async def _tool(client: ChatClient, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Call a tool of an agent over chat, without its model.

    Raises:
        FailedPreconditionError: `agent_has_no_mesh_tools`, or what the agent's runtime said.
    """
    said, called = "", False
    async for event in client.say(f"/{name} {json.dumps(arguments)}"):
        kind = event.get("type")
        called = called or (kind == "tool_call" and event.get("name") == name)
        if kind == "delta":
            said += str(event.get("text", ""))
        elif kind == "error":
            return {"error": str(event.get("reason")), "message": str(event.get("message"))}
    try:
        found = json.loads(said) if called else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise FailedPreconditionError(
            "agent_has_no_mesh_tools", "the agent's runtime offers no mesh tools over chat"
        )
    return found


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

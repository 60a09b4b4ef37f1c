"""`kars approvals`: calls that wait for a person."""

from typing import Annotated, Any

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from kars.governance.v1 import governance_pb2
from rich.markup import escape

from kars_cli import options, output, stubs
from kars_cli.output import DataFormat
from kars_cli.session import Session, command

app = typer.Typer(help="List, grant and deny calls that wait for approval.", no_args_is_help=True)

Note = Annotated[str, typer.Option("--note", help="Why; kept with the decision.")]
ApprovalId = Annotated[str, typer.Argument(metavar="ID", help="Id, or its first 6 characters and more.")]


@app.command("list")
def list_approvals(
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Namespace; all when left out.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Closed ones, too.")] = False,
    form: options.DataOutput = DataFormat.TABLE,
) -> None:
    """Show what waits."""
    found = [plain(item) for item in _list(namespace, include_closed=everything)]
    if form is not DataFormat.TABLE:
        output.data(found, form)
    elif not found:
        output.console().print("nothing waits for approval")
    else:
        headings = ("Id", "Sandbox", "Action", "State", "Approvals", "Age", "Expires", "Detail")
        output.table(headings, [_row(item) for item in found])


@app.command()
def grant(approval: ApprovalId, note: Note = "", form: options.DataOutput = DataFormat.TABLE) -> None:
    """Let the call go on."""
    _decided(_decide(approval, note, granted=True), form)


@app.command()
def deny(approval: ApprovalId, note: Note = "", form: options.DataOutput = DataFormat.TABLE) -> None:
    """Refuse the call."""
    _decided(_decide(approval, note, granted=False), form)


@app.command()
def watch(
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Namespace; all when left out.")] = "",
    form: options.DataOutput = DataFormat.TABLE,
) -> None:
    """Print every change, beginning with what waits now."""
    _watch(namespace, form)


@command
async def _list(namespace: str, *, include_closed: bool) -> list[governance_pb2.Approval]:
    found: list[governance_pb2.Approval] = []
    token = ""
    async with Session.open() as session:
        stub = stubs.approvals(session)
        while True:
            request = governance_pb2.ListApprovalsRequest(
                namespace=namespace, include_closed=include_closed, page_size=1000, page_token=token
            )
            answer = await stub.ListApprovals(request)
            found += answer.approvals
            token = answer.next_page_token
            if not token:
                return found


@command
async def _decide(approval: str, note: str, *, granted: bool) -> governance_pb2.Approval:
    async with Session.open() as session:
        request = governance_pb2.DecideApprovalRequest(id=approval, grant=granted, note=note)
        return (await stubs.approvals(session).DecideApproval(request)).approval


@command
async def _watch(namespace: str, form: DataFormat) -> None:
    async with Session.open() as session:
        request = governance_pb2.WatchApprovalsRequest(namespace=namespace)
        async for change in stubs.approvals(session).WatchApprovals(request):
            item = plain(change.approval)
            if form is not DataFormat.TABLE:
                output.data(item, form)
            else:
                print("  ".join(output.clean(cell) for cell in _row(item)), flush=True)


def plain(approval: governance_pb2.Approval) -> dict[str, Any]:
    """Return an approval for programs."""
    return {
        "id": approval.id,
        "sandbox": f"{approval.sandbox.namespace}/{approval.sandbox.name}",
        "action": approval.action,
        "detail": approval.detail,
        "rule": approval.rule,
        "state": governance_pb2.ApprovalState.Name(approval.state).removeprefix("APPROVAL_STATE_").lower(),
        "createdAt": _time(approval.created_at),
        "expiresAt": _time(approval.expires_at),
        "minApprovals": approval.min_approvals,
        "grantedBy": list(approval.granted_by),
        "decidedBy": approval.decided_by,
        "decidedAt": _time(approval.decided_at) if approval.HasField("decided_at") else None,
        "note": approval.note,
        "callId": approval.call_id,
    }


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    return (
        item["id"],
        item["sandbox"],
        item["action"],
        item["state"],
        f"{len(item['grantedBy'])}/{max(1, item['minApprovals'])}",
        output.age(item["createdAt"]),
        item["expiresAt"],
        item["detail"],
    )


def _decided(approval: governance_pb2.Approval, form: DataFormat) -> None:
    item = plain(approval)
    if form is not DataFormat.TABLE:
        output.data(item, form)
        return
    sentence = f"{item['id']} {escape(item['action'])} of {item['sandbox']}: {item['state']}"
    missing = item["minApprovals"] - len(item["grantedBy"])
    if item["state"] == "pending" and missing > 0:
        sentence += f", {missing} more approval{'s' if missing > 1 else ''} needed"
    output.console().print(sentence, soft_wrap=True)


def _time(stamp: Timestamp) -> str:
    return stamp.ToDatetime().isoformat(timespec="seconds") + "Z" if stamp.ByteSize() else ""

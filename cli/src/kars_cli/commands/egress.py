"""`kars egress <sandbox> ...`: what a sandbox may reach, what it tried, and how that is changed."""

import re
import secrets
from typing import Annotated, Any

import typer
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from kars.egress.v1 import egress_pb2

from kars_cli import options, output, stubs
from kars_cli.output import DataFormat
from kars_cli.session import Session, command

app = typer.Typer(help="What a sandbox may reach, and why something is refused.", no_args_is_help=True)

For = Annotated[str, typer.Option("--for", help="How long: 30s, 15m, 2h.", show_default=True)]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_SCHEMES = {"https": egress_pb2.SCHEME_HTTPS, "http": egress_pb2.SCHEME_HTTP}


@app.callback()
def sandbox(
    context: typer.Context,
    name: options.SandboxName,
    namespace: options.Namespace = "default",
) -> None:
    """Choose the sandbox that the command is about."""
    context.obj = egress_pb2.SandboxRef(namespace=namespace, name=name)


@app.command()
def status(context: typer.Context, form: options.DataOutput = DataFormat.TABLE) -> None:
    """Show what is allowed, for how long, and whether it is in force."""
    found = _status(context.obj)
    if form is not DataFormat.TABLE:
        output.data(found, form)
        return
    out = output.console()
    out.print(f"mode: {'learning until ' + found['learningUntil'] if found['learningUntil'] else 'strict'}")
    out.print(f"in force: {found['distribution']} {found['refusal']}".rstrip(), markup=False)
    rows = [(target, "allowlist", "", "") for target in found["targets"]]
    for approval in found["approvals"]:
        rows += [
            (target, f"approval {approval['id']}", approval["expiresAt"], approval["reason"])
            for target in approval["targets"]
        ]
    output.table(("Target", "Allowed by", "Until", "Reason"), rows)


@app.command()
def learned(context: typer.Context, form: options.DataOutput = DataFormat.TABLE) -> None:
    """Show what was reached while learning, most frequent first."""
    _targets(context.obj, egress_pb2.TARGET_KIND_LEARNED, form)


@app.command()
def blocked(context: typer.Context, form: options.DataOutput = DataFormat.TABLE) -> None:
    """Show what was refused, most frequent first."""
    _targets(context.obj, egress_pb2.TARGET_KIND_BLOCKED, form)


@app.command()
def approve(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="HOST[:PORT]", help="What to allow.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the audit log.")],
    lifetime: For = "1h",
    scheme: Annotated[str, typer.Option("--scheme", help="https or http.", show_default=True)] = "https",
    form: options.DataOutput = DataFormat.TABLE,
) -> None:
    """Allow a target for a while; it ends by itself."""
    host, port = _host_and_port(target)
    if scheme not in _SCHEMES:
        raise typer.BadParameter("must be https or http", param_hint="--scheme")
    allowed = egress_pb2.AllowedTarget(host=host, port=port, scheme=_SCHEMES[scheme])
    request = egress_pb2.GrantApprovalRequest(
        sandbox=context.obj,
        id=f"cli-{secrets.token_hex(4)}",
        targets=[allowed],
        reason=reason,
        ttl=_duration(lifetime),
    )
    ends = _approve(request)
    if form is not DataFormat.TABLE:
        output.data({"id": request.id, "expiresAt": ends}, form)
        return
    output.console().print(f"approval {request.id}: {target} until {ends}", markup=False)


@app.command()
def revoke(
    context: typer.Context, approval: Annotated[str, typer.Argument(metavar="ID", help="Approval.")]
) -> None:
    """End an approval now, and close what runs on it."""
    _revoke(egress_pb2.RevokeApprovalRequest(sandbox=context.obj, id=approval))
    output.console().print(f"approval {approval} is revoked", markup=False)


@app.command()
def learn(context: typer.Context, lifetime: For = "15m") -> None:
    """Let the sandbox reach what nobody named, for a while, and record it."""
    ends = _learn(egress_pb2.StartLearningRequest(sandbox=context.obj, ttl=_duration(lifetime)))
    output.console().print(f"learning until {ends}", markup=False)


@app.command()
def enforce(context: typer.Context) -> None:
    """End learning now."""
    _enforce(egress_pb2.EnforceRequest(sandbox=context.obj))
    output.console().print("strict: only what is named is reached")


@app.command()
def explain(
    context: typer.Context,
    url: Annotated[str, typer.Argument(metavar="URL", help="What the agent would fetch.")],
    method: Annotated[str, typer.Option("--method", help="HTTP method.", show_default=True)] = "GET",
    form: options.DataOutput = DataFormat.TABLE,
) -> None:
    """Tell which rule decides a URL, and what to do about it; fetches nothing."""
    found = _explain(egress_pb2.ExplainUrlRequest(sandbox=context.obj, url=url, method=method))
    if form is not DataFormat.TABLE:
        output.data(found, form)
        return
    rows = [
        ("decision", "allowed" if found["allowed"] else "denied"),
        ("reason", found["reason"]),
        ("rule", found["rule"]),
        ("read as", f"{found['host']}:{found['port']}" if found["host"] else ""),
        ("message", found["message"]),
        ("next step", found["nextStep"]),
    ]
    output.table(("What", "Answer"), [row for row in rows if row[1]])


@command
async def _status(reference: egress_pb2.SandboxRef) -> dict[str, Any]:
    async with Session.open() as session:
        found = await stubs.egress(session).GetSandboxStatus(
            egress_pb2.GetSandboxStatusRequest(sandbox=reference)
        )
    return {
        "targets": [_target(target) for target in found.targets],
        "approvals": [
            {
                "id": item.id,
                "targets": [_target(target) for target in item.targets],
                "expiresAt": _time(item.expires_at),
                "reason": item.reason,
                "grantedBy": item.granted_by,
            }
            for item in found.approvals
        ],
        "learningUntil": _time(found.learning_until) if found.HasField("learning_until") else "",
        "digest": found.digest,
        "distribution": egress_pb2.Distribution.Name(found.distribution)
        .removeprefix("DISTRIBUTION_")
        .lower(),
        "refusal": found.refusal,
    }


@command
async def _targets(
    reference: egress_pb2.SandboxRef, kind: "egress_pb2.TargetKind.ValueType", form: DataFormat
) -> None:
    async with Session.open() as session:
        request = egress_pb2.ListTargetsRequest(sandbox=reference, kind=kind, page_size=1024)
        answer = await stubs.egress(session).ListTargets(request)
    found = [
        {
            "host": item.host,
            "port": item.port,
            "reason": item.reason,
            "count": item.count,
            "firstSeen": _time(item.first_seen),
            "lastSeen": _time(item.last_seen),
        }
        for item in answer.targets
    ]
    if form is not DataFormat.TABLE:
        output.data({"targets": found, "leftOut": answer.left_out}, form)
        return
    rows = [
        (
            str(item["host"]),
            str(item["port"] or ""),
            str(item["reason"]),
            str(item["count"]),
            output.age(item["lastSeen"]),
        )
        for item in found
    ]
    output.table(("Host", "Port", "Reason", "Count", "Last"), rows)
    if answer.left_out:
        output.console().print(f"{answer.left_out} requests for further targets were not kept")


@command
async def _approve(request: egress_pb2.GrantApprovalRequest) -> str:
    async with Session.open() as session:
        return _time((await stubs.egress(session).GrantApproval(request)).expires_at)


@command
async def _revoke(request: egress_pb2.RevokeApprovalRequest) -> None:
    async with Session.open() as session:
        await stubs.egress(session).RevokeApproval(request)


@command
async def _learn(request: egress_pb2.StartLearningRequest) -> str:
    async with Session.open() as session:
        return _time((await stubs.egress(session).StartLearning(request)).expires_at)


@command
async def _enforce(request: egress_pb2.EnforceRequest) -> None:
    async with Session.open() as session:
        await stubs.egress(session).Enforce(request)


@command
async def _explain(request: egress_pb2.ExplainUrlRequest) -> dict[str, Any]:
    async with Session.open() as session:
        found = await stubs.egress(session).ExplainUrl(request)
    return {
        "allowed": found.allowed,
        "reason": found.reason,
        "rule": found.rule,
        "message": found.message,
        "nextStep": found.next_step,
        "host": found.host,
        "port": found.port,
    }


def _target(target: egress_pb2.AllowedTarget) -> str:
    scheme = "http" if target.scheme == egress_pb2.SCHEME_HTTP else "https"
    limits = " ".join(filter(None, (",".join(target.methods), ",".join(target.path_prefixes))))
    return f"{scheme}://{target.host}:{target.port} {limits}".rstrip()


def _host_and_port(text: str) -> tuple[str, int]:
    host, colon, port = text.partition(":")
    if not colon:
        return host, 0
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise typer.BadParameter("must be HOST or HOST:PORT", param_hint="HOST[:PORT]")
    return host, int(port)


def _duration(text: str) -> Duration:
    match = re.fullmatch(r"([1-9][0-9]{0,6})([smhd])", text)
    if match is None:
        raise typer.BadParameter("must be a number and s, m, h or d", param_hint="--for")
    return Duration(seconds=int(match.group(1)) * _UNITS[match.group(2)])


def _time(stamp: Timestamp) -> str:
    return stamp.ToDatetime().isoformat(timespec="seconds") + "Z" if stamp.ByteSize() else ""

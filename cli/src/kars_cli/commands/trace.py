"""`kars trace`: decisions about a sandbox's web requests, as they are made."""

from typing import Annotated

import typer
from kars.egress.v1 import egress_pb2

from kars_cli import options, output, stubs
from kars_cli.output import DataFormat
from kars_cli.session import Session, command


def trace(
    name: options.SandboxName,
    namespace: options.Namespace = "default",
    count: Annotated[int, typer.Option("--count", help="End after so many; 0 goes on.", min=0)] = 0,
    form: options.DataOutput = DataFormat.TABLE,
) -> None:
    """Follow decisions about a sandbox's web requests live."""
    _follow(egress_pb2.SandboxRef(namespace=namespace, name=name), count, form)


@command
async def _follow(reference: egress_pb2.SandboxRef, count: int, form: DataFormat) -> None:
    shown = 0
    async with Session.open() as session:
        request = egress_pb2.WatchDecisionsRequest(sandbox=reference)
        async for change in stubs.egress(session).WatchDecisions(request):
            if change.missed:
                output.console().print(f"({change.missed} decisions were missed)")
            _show(change.decision, form)
            shown += 1
            if shown == count:
                return


def _show(decision: egress_pb2.Decision, form: DataFormat) -> None:
    time = decision.time.ToDatetime().isoformat(timespec="milliseconds") + "Z"
    if form is not DataFormat.TABLE:
        fields = {
            "time": time,
            "sandbox": decision.sandbox,
            "method": decision.method,
            "host": decision.host,
            "allowed": decision.allowed,
            "reason": decision.reason,
            "status": decision.status,
            "sent": decision.bytes_sent,
            "received": decision.bytes_received,
            "id": decision.id,
        }
        output.data(fields, form)
        return
    verdict = "allowed" if decision.allowed else "denied "
    method = decision.method or "TUNNEL"
    print(output.clean(f"{time}  {verdict}  {method:8}{decision.host}  {decision.reason}"), flush=True)

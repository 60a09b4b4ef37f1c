"""`kars doctor`: what this machine can isolate, with or without a running platform."""

import json
import subprocess
import sys
from typing import Any

import typer
from kars.sandbox.v1 import sandbox_pb2
from kars_common.errors import KarsError, UnavailableError
from rich.markup import escape

from kars_cli import home, isolation, options, output, stubs
from kars_cli.exits import Exit
from kars_cli.local import services
from kars_cli.output import DataFormat
from kars_cli.session import Session, command

_MODULE = "kars_controller.platforms.local.doctor"
_USABLE = ("full", "degraded")


def doctor(form: options.DataOutput = DataFormat.TABLE) -> None:
    """Say which isolation this machine gives, and what to do about what is missing."""
    report = _from_controller() or _examine()
    report["services"] = [service.plain() for service in services.found(home.state_dir())]
    if form is not DataFormat.TABLE:
        output.data(report, form)
    else:
        user = "as root" if report["root"] else "as an ordinary user"
        where = f"{report['platform']}, kernel {report['kernel']}, {user}"
        output.console().print(f"{escape(where)}: [bold]{escape(str(report['tier']))}[/]")
        headings = ("Control", "State", "Detail", "Remedy")
        fields = ("name", "state", "detail", "remedy")
        rows = [tuple(str(item.get(name, "")) for name in fields) for item in report["controls"]]
        output.table(headings, rows)
        if report["services"]:
            output.console().print()
            output.table(
                ("Service", "State", "Endpoint", "Log"), [_service_row(x) for x in report["services"]]
            )
    if report["tier"] not in _USABLE:
        raise typer.Exit(Exit.REFUSED)


def _service_row(service: dict[str, Any]) -> tuple[str, str, str, str]:
    state = "Running" if service["running"] else "stopped; kars dev starts it"
    return str(service["name"]), state, str(service["endpoint"]), str(service["log"])


def _from_controller() -> dict[str, Any] | None:
    """Return the running platform's report; None when there is none that answers."""
    try:
        return _ask() if home.endpoints(home.state_dir()).running else None
    except KarsError:
        return None  # the examination below needs no controller and tells the same


@command
async def _ask() -> dict[str, Any]:
    async with Session.open() as session:
        report = await stubs.sandboxes(session).GetHostReport(sandbox_pb2.GetHostReportRequest())
    return {
        "platform": report.platform,
        "kernel": report.kernel,
        "root": report.root,
        "tier": report.tier,
        "controls": isolation.data(report.controls),
    }


def _examine() -> dict[str, Any]:
    """Ask the platform's own examination, which runs without a controller.

    Raises:
        UnavailableError: `doctor_failed`.
    """
    ended = subprocess.run(  # noqa: S603 - our own module, fixed arguments
        [sys.executable, "-m", _MODULE], capture_output=True, text=True, check=False
    )
    try:
        report = json.loads(ended.stdout)
        return {name: report[name] for name in ("platform", "kernel", "root", "tier", "controls")}
    except (ValueError, KeyError, TypeError):
        last = ended.stderr.strip().splitlines()[-1:] or ["no output"]
        raise UnavailableError(
            "doctor_failed", f"the examination of this machine failed: {last[0]}"
        ) from None

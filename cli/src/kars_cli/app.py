"""Puts the command groups together."""

import typer

from kars_cli import exits
from kars_cli.commands import (
    a2a,
    apply,
    approvals,
    audit,
    connect,
    delete,
    describe,
    dev,
    doctor,
    egress,
    get,
    logs,
    mesh,
    policy,
    trace,
    version,
)


def build() -> typer.Typer:
    """Return the whole command."""
    app = typer.Typer(
        name="kars",
        help="Run AI agents in hardened sandboxes, governed by policy, with an audit log that verifies.",
        epilog=exits.HELP,
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.add_typer(dev.app, name="dev")
    app.command("apply")(apply.apply)
    app.command("get")(get.get)
    app.command("describe")(describe.describe)
    app.command("delete")(delete.delete)
    app.command("logs")(logs.logs)
    app.command("connect")(connect.connect)
    app.add_typer(approvals.app, name="approvals")
    app.add_typer(audit.app, name="audit")
    app.add_typer(policy.app, name="policy")
    app.add_typer(mesh.app, name="mesh")
    app.add_typer(egress.app, name="egress")
    app.command("trace")(trace.trace)
    app.add_typer(a2a.app, name="a2a")
    app.command("doctor")(doctor.doctor)
    app.command("version")(version.version)
    return app

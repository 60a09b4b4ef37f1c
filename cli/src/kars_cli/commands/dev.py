"""`kars dev`: the platform on this machine, without Kubernetes and Docker."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Annotated, Any

import typer
from kars.resource.v1 import resource_pb2
from kars_common.errors import KarsError, UnavailableError
from rich.markup import escape

from kars_cli import home, options, output, reporting, stubs
from kars_cli.exits import Exit
from kars_cli.local import pods, process, providers, services
from kars_cli.output import DataFormat
from kars_cli.session import Session, command

app = typer.Typer(help="Run the platform on this machine.", no_args_is_help=False)

Keep = Annotated[bool, typer.Option("--keep", help="Leave the sandboxes running.")]


@app.callback(invoke_without_command=True)
def dev(
    context: typer.Context,
    provider: Annotated[
        list[str] | None,
        typer.Option("--provider", help="Where models are served: name=https://host/v1. May be given again."),
    ] = None,
    provider_key_file: Annotated[
        list[str] | None,
        typer.Option(
            "--provider-key-file", help="File with the key: name=FILE, or FILE for the first provider."
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when the platform is up.")] = False,
    keep: Keep = False,
) -> None:
    """Start the local platform; Ctrl-C ends it and its sandboxes.

    Without --provider: KARS_PROVIDER_URL with KARS_PROVIDER_KEY, or OPENAI_API_KEY, of the environment.
    State is kept in $KARS_HOME (~/.kars; /var/lib/kars for root).
    """
    if context.invoked_subcommand is not None:
        return
    state = home.state_dir()
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write_providers(state, provider or [], provider_key_file or [])
    if _running(state) is not None:
        output.console().print(f"the platform runs already ({escape(str(state))})")
        return
    child = _start(state)
    if not detach:
        _follow(state, child, keep=keep)


@app.command()
def stop(keep: Keep = False) -> None:
    """Stop the platform, and its sandboxes unless --keep."""
    if not _stop(home.state_dir(), keep=keep):
        raise typer.Exit(Exit.REFUSED)


@app.command()
def status(form: options.DataOutput = DataFormat.TABLE) -> None:
    """Say whether the platform runs, where, and with which sandboxes. Exit code 3 when it does not."""
    state = home.state_dir()
    endpoints = _running(state)
    found: dict[str, Any] = {
        "home": str(state),
        "running": endpoints is not None,
        "answers": endpoints is not None and _answers(),
        "endpoint": endpoints.controller if endpoints else "",
        "pid": endpoints.pid if endpoints else 0,
        "pods": {
            f"{path.parent.name}/{path.name}": "running" if pods.running(path) else "stopped"
            for path in pods.directories(state)
        },
        "services": [service.plain() for service in services.found(state)],
    }
    if form is not DataFormat.TABLE:
        output.data(found, form)
    else:
        out = output.console()
        word = (
            "[green]running[/]"
            if found["answers"]
            else "[red]not answering[/]"
            if endpoints
            else "[yellow]stopped[/]"
        )
        where = f" at {found['endpoint']}, process {found['pid']}" if endpoints else ""
        out.print(f"platform {word}{where}; state in {escape(str(state))}", soft_wrap=True)
        for service in found["services"]:
            where = f" at {service['endpoint']}, process {service['pid']}" if service["running"] else ""
            out.print(f"  {escape(service['name'])}: {'running' if service['running'] else 'stopped'}{where}")
        for name, how in found["pods"].items():
            out.print(f"  {escape(name)}: {how}")
    if not found["answers"]:
        raise typer.Exit(Exit.UNREACHABLE)


def _write_providers(state: Path, given: list[str], key_files: list[str]) -> None:
    found = providers.from_options(given, key_files, os.environ)
    if found or not (state / "providers.json").exists():
        providers.write(state, found)
    if not found and not given:
        out = output.console()
        out.print("[dim]no provider given: those of the last start are kept[/]")
    for item in found:
        key = "with a key" if item.key else "without a key"
        output.console().print(f"provider {escape(item.name)}: {escape(item.url)}, {key}", soft_wrap=True)


def _start(state: Path) -> "subprocess.Popen[bytes]":
    out = reporting.errors_console()
    with out.status("starting the controller"):
        child = process.start(state)
    endpoints = home.endpoints(state)
    output.console().print(f"[green]✓[/] controller at {endpoints.controller}, process {endpoints.pid}")
    return child


def _follow(state: Path, child: "subprocess.Popen[bytes]", *, keep: bool) -> None:
    """Stay until the controller ends or somebody ends us."""
    ending = "Ctrl-C ends the platform" + ("" if keep else " and its sandboxes")
    output.console().print(
        f"[dim]{ending}; the log is {escape(str(process.log_path(state)))}[/]", soft_wrap=True
    )
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = child.wait()
    except KeyboardInterrupt:
        if not _stop(state, keep=keep):
            raise typer.Exit(Exit.REFUSED) from None
        return
    if code != 0:
        raise UnavailableError("controller_ended", f"the controller ended with exit code {code}")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _stop(state: Path, *, keep: bool) -> bool:
    """Stop what runs, the controller first: it would start the pods again. False when a pod stayed."""
    out, everything = output.console(), True
    endpoints = _running(state)
    if endpoints is not None and process.stop(endpoints):
        out.print("controller stopped")
    elif endpoints is None:
        out.print("the controller does not run")
    # The controller takes its services along; one that was killed could not.
    for service in services.found(state):
        if service.running:
            everything = service.stop() and everything
            out.print(f"{escape(service.name)} stopped")
    if keep:
        return True
    for name, ended in pods.stop_all(state):
        everything = everything and ended
        out.print(f"{escape(name)} {'stopped' if ended else '[red]did not stop in time[/]'}")
    return everything


def _running(state: Path) -> home.Endpoints | None:
    try:
        endpoints = home.endpoints(state)
    except KarsError:
        return None
    return endpoints if endpoints.running else None


@command
async def _ping() -> None:
    async with Session.open() as session:
        await stubs.resources(session).ListKinds(resource_pb2.ListKindsRequest(), timeout=5)


def _answers() -> bool:
    try:
        _ping()
    except KarsError:
        return False
    return True

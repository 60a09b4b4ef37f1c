"""Run the quickstart, attack it, print the proofs: `python -m examples.demo [--model local]`.

Exit code 0 only when every control held. Everything lives in a temporary state folder and ends with the demo.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from examples.demo import mesh, proofs
from examples.demo.model import ModelSource, model_source, new_canary
from examples.demo.platform import DemoError, Platform, ended, wait_for
from examples.demo.proofs import Probe, Proof

EXAMPLES = Path(__file__).resolve().parents[1]
QUICKSTART = EXAMPLES / "quickstart" / "manifests"
HERE = Path(__file__).resolve().parent
FAULTS = {
    folder.parent.name: folder.parent
    for folder in (EXAMPLES.parent / "tests/faults").glob("*/sitecustomize.py")
}
console = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 132)


def main() -> int:
    """Run everything; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make demo", description="run the quickstart agent and attack it")
    parser.add_argument("--model", choices=("scripted", "local"), default="scripted")
    parser.add_argument("--fault", choices=sorted(FAULTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kars-demo-") as folder:
        scratch = Path(folder)
        scratch.chmod(0o755)  # the router's uid must be able to pass through
        try:
            with model_source(options.model, scratch, os.environ) as model:
                console.print(f"[bold]model:[/] {model.said}")
                rows = run(model, scratch, options.fault)
        except DemoError as error:
            console.print(f"[red]the demo cannot go on:[/] {error}")
            return 1
    console.print(table(rows))
    failed = [row.control for row in rows if not row.held]
    console.print(
        f"[red]FAILED: {', '.join(failed)}[/]"
        if failed
        else f"[green]every control held[/] ({time.monotonic() - started:.0f} s)"
    )
    return 1 if failed else 0


def run(model: ModelSource, scratch: Path, fault: str | None) -> list[Proof]:
    """Start the platform, do the task, attack, and return the rows.

    Args:
        model: what answers.
        scratch: a folder for this run.
        fault: a folder of tests/faults that takes one control away, to see that this is noticed; the mesh,
            which none of them touches, is left out then.
    """
    canary_file = scratch / "canary.key"
    canary = new_canary()
    canary_file.write_text(canary)
    canary_file.chmod(0o600)
    python_path = FAULTS[fault] if fault else None
    with ended(Platform(scratch / "home", python_path)) as platform, listeners() as (tcp, udp):
        step("starting the local platform")
        platform.kars(
            *("dev", "--detach"),
            *("--provider", f"openai={model.url}", "--provider-key-file", f"openai={model.key_file}"),
            *("--provider", "canary=http://127.0.0.1:9/v1", "--provider-key-file", f"canary={canary_file}"),
        )
        agent, tool_policy = apply_quickstart(platform, model, scratch)
        step(f"the agent works on its task in sandbox default/{agent}")
        decide(platform, agent, "grant")
        granted = wait_for(
            "the agent's report",
            lambda: any(_published(line) for line in platform.agent_lines(agent)),
            deadline_s=60,
        )
        show_work(platform, agent)
        talk = (
            [] if fault else mesh.prove(platform, agent, scratch / "quickstart" / "manifests", scratch, step)
        )
        for row in talk:
            step(f"{row.control}: {'held' if row.held else 'FAILED'}")
        step("the attacker starts in a sandbox of its own")
        targets = {"tcp_port": tcp.getsockname()[1], "udp_port": udp.getsockname()[1]}
        apply_probe(platform, model, tool_policy, targets, scratch)
        rows = attack(platform, agent, Probe(platform), udp, canary, granted=granted, scratch=scratch)
        return [*rows, *talk]


def show_work(platform: Platform, agent: str) -> None:
    """Print which tools the agent has called and the beginning of the report that it wrote."""
    events = [json.loads(line) for line in platform.agent_lines(agent) if line.startswith("{")]
    tools = [str(event["tool"]) for event in events if event.get("event") == "tool_result"]
    step(f"the agent has called {', '.join(tools)}")
    for report in sorted((platform.pod(agent) / "workspace" / "reports").glob("*.md")):
        if report.is_symlink():  # the agent's files are not to be trusted
            continue
        lines = [line for line in report.read_text(encoding="utf-8").splitlines() if line.strip()]
        for line in lines[:6]:
            console.print(f"    {line}", style="cyan", markup=False)


def _published(line: str) -> bool:
    """Whether a line of the agent says that the granted call has run, whatever the model wrote after it."""
    try:
        event = json.loads(line)
    except ValueError:
        return False
    fields = {"event": "tool_result", "tool": "publish_report", "ok": True}
    return isinstance(event, dict) and fields.items() <= event.items()


def apply_quickstart(platform: Platform, model: ModelSource, scratch: Path) -> tuple[str, str]:
    """Apply the quickstart's manifests and return the names of the sandbox and its tool policy."""
    target = scratch / "quickstart"
    shutil.copytree(EXAMPLES / "quickstart", target)
    sandbox = tool_policy = ""
    for manifest in sorted((target / "manifests").glob("*.yaml")):
        documents = [document for document in yaml.safe_load_all(manifest.read_text()) if document]
        for document in documents:
            if document["kind"] == "InferencePolicy":
                document["spec"]["modelPreference"]["primary"]["deployment"] = model.model
            elif document["kind"] == "KarsSandbox":
                sandbox = sandbox or document["metadata"]["name"]
            elif document["kind"] == "ToolPolicy":
                tool_policy = tool_policy or document["metadata"]["name"]
        manifest.write_text(yaml.safe_dump_all(documents))
    step("applying examples/quickstart")
    platform.kars("apply", "-f", str(target / "manifests"), "--wait", timeout_s=180)
    return sandbox, tool_policy


def apply_probe(
    platform: Platform, model: ModelSource, tool_policy: str, targets: dict[str, int], scratch: Path
) -> None:
    """Apply the attacker's sandbox, told where this machine listens."""
    code = scratch / "probe"
    shutil.copytree(HERE / "probe", code)
    (code / "targets.json").write_text(json.dumps(targets))
    text = (HERE / "manifests" / "probe.yaml").read_text()
    for mark, value in (("@MODEL@", model.model), ("@CODE@", str(code)), ("@TOOLPOLICY@", tool_policy)):
        text = text.replace(mark, value)
    (scratch / "probe.yaml").write_text(text)
    platform.kars("apply", "-f", str(scratch / "probe.yaml"), "--wait", timeout_s=180)


def attack(
    platform: Platform,
    agent: str,
    probe: Probe,
    udp: socket.socket,
    canary: str,
    *,
    granted: bool,
    scratch: Path,
) -> list[Proof]:
    """Collect what the attacker met, then break things around it."""
    rows: list[Proof] = []

    def show(control: str, prove: Callable[[], Proof]) -> None:
        row = proofs.attempt(control, prove)
        step(f"{control}: {'held' if row.held else 'FAILED'}")
        rows.append(row)

    secrets = platform.pod(probe.name) / "router"
    show("zero credentials", lambda: proofs.zero_credentials(probe.first("credentials", 90), canary, secrets))
    show("no network", lambda: proofs.no_network(probe.first("network"), received(udp)))
    show("kernel surface", lambda: proofs.kernel_surface(probe.first("kernel")))
    show(
        "governed call",
        lambda: proofs.governed_call(probe.first("model_allowed"), probe.first("model_outside")),
    )
    decide(platform, probe.name, "deny")
    denied = probe.first("approval")
    show("approval", lambda: proofs.approval(granted, denied))
    show("budget", lambda: _budget(platform, probe))
    traces = [
        str(probe.first(name)["trace"])
        for name in ("model_allowed", "model_outside", "over_request_cap", "approval", "over_daily_budget")
    ]
    show("audit", lambda: proofs.audit(platform, [probe.name, agent], traces, scratch / "outsider"))
    show("last known policy", lambda: _last_known(platform, probe, scratch))
    return rows


def _budget(platform: Platform, probe: Probe) -> Proof:
    daily = probe.first("over_daily_budget", 120)
    victim = wait_for("the probe's router", lambda: platform.router_pid(probe.name), deadline_s=10)
    os.kill(victim, signal.SIGKILL)
    killed = time.time()
    wait_for(
        "the router's restart", lambda: platform.router_pid(probe.name) not in (None, victim), deadline_s=60
    )
    after = probe.since(killed)
    usage = wait_for("the budget's numbers", lambda: _usage(platform, probe.name), deadline_s=30)
    return proofs.budget(
        probe.first("over_request_cap"), daily, after, int(str(usage.get("refusedCalls", 0)))
    )


def _usage(platform: Platform, name: str) -> dict[str, object] | None:
    result = platform.run("policy", "show", name, "-o", "json")
    if result.returncode != 0:
        return None
    budget = json.loads(result.stdout).get("budget")
    return budget if isinstance(budget, dict) else None


def _last_known(platform: Platform, probe: Probe, scratch: Path) -> Proof:
    controller = platform.controller_pid()
    os.kill(controller, signal.SIGKILL)
    stopped = time.time()
    still = probe.since(stopped)
    return proofs.last_known_policy(still, bare_router(scratch))


def bare_router(scratch: Path) -> tuple[int, str]:
    """Start a router that never got a policy, and ask it for a model call."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = door.getsockname()[1]
    state = scratch / "bare-router"
    state.mkdir()
    (state / "providers.json").write_text('{"providers": []}')
    (state / "keys.json").write_text("[]")
    settings = {
        "NAMESPACE": "default",
        "SANDBOX": "bare",
        "TRUST_DOMAIN": "kars.local",
        "DOOR_ADDRESS": f"127.0.0.1:{port}",
        "STATE_DIR": str(state),
        "PROVIDERS_FILE": str(state / "providers.json"),
        "POLICY_KEYS_FILE": str(state / "keys.json"),
    }
    environment = {
        "PATH": os.environ["PATH"],
        **{f"KARS_ROUTER_{key}": value for key, value in settings.items()},
    }
    router = subprocess.Popen(
        [sys.executable, "-m", "kars_router"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        return wait_for("the bare router", lambda: _ask(port), deadline_s=20)
    finally:
        router.terminate()
        router.wait(20)


def _ask(port: int) -> tuple[int, str] | None:
    body = json.dumps({"model": "gpt-4.1", "messages": [{"role": "user", "content": "hello"}]}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", body, {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, "answered"
    except urllib.error.HTTPError as error:
        return error.code, str(json.loads(error.read())["error"]["code"])
    except OSError:
        return None


def decide(platform: Platform, sandbox: str, verb: str) -> None:
    """Wait until a call of the sandbox is held, see it in the list, and decide it, all by the command."""

    def held() -> str | None:
        listed = platform.kars_items("approvals", "list")
        return next((str(item["id"]) for item in listed if item["sandbox"] == f"default/{sandbox}"), None)

    approval = wait_for(f"a held call of {sandbox}", held, deadline_s=120)
    step(f"kars approvals {verb} {approval}")
    platform.kars("approvals", verb, approval)


@contextmanager
def listeners() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Sockets on this machine's loopback that a sandbox must not reach."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        udp.settimeout(0)
        yield tcp, udp


def received(udp: socket.socket) -> int:
    """Number of datagrams that arrived."""
    count = 0
    while True:
        try:
            udp.recv(1024)
        except BlockingIOError:
            return count
        count += 1


def table(rows: list[Proof]) -> Table:
    """The proof table."""
    shown = Table(title="what was proved", show_lines=True)
    for column in ("proof", "attack made just now", "what happened", ""):
        shown.add_column(column, overflow="fold")
    for row in rows:
        mark = "[green]held[/]" if row.held else "[red]FAILED[/]"
        shown.add_row(row.control, row.attack, row.happened, mark)
    return shown


def step(text: str) -> None:
    """Say what happens now."""
    console.print(f"[dim]·[/] {text}")


if __name__ == "__main__":
    sys.exit(main())

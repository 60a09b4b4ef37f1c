"""`kars policy show`: what a router enforces at this moment, by its own word."""

import json
from typing import Any

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from kars.budget.v1 import budget_pb2
from kars.policy.v1 import policy_pb2
from rich.markup import escape

from kars_cli import options, output, stubs
from kars_cli.output import DataFormat
from kars_cli.session import Session, command

app = typer.Typer(help="What is in force.", no_args_is_help=True)

_WINDOWS = {budget_pb2.WINDOW_KIND_DAY: "day", budget_pb2.WINDOW_KIND_MONTH: "month"}


@app.callback()
def group() -> None:
    """What is in force."""


@app.command()
def show(
    name: options.SandboxName,
    namespace: options.Namespace = "default",
    form: options.DataOutput = DataFormat.TABLE,
) -> None:
    """Show the policy that a sandbox's router enforces, its digests and sources, models, and budget use."""
    found = _read(namespace, name)
    if form is not DataFormat.TABLE:
        output.data(found, form)
    else:
        _print(found)


@command
async def _read(namespace: str, name: str) -> dict[str, Any]:
    async with Session.open() as session:
        router = await session.router(namespace, name)
        enforced = await stubs.enforcement(router).GetInForce(policy_pb2.GetInForceRequest())
        request = budget_pb2.GetUsageRequest(sandbox=router.sandbox)
        usage = await stubs.budgets(router).GetUsage(request)
    doors = [_door(door) for door in enforced.doors if door.sandbox == router.sandbox]
    return {
        "sandbox": f"{namespace}/{name}",
        "inForce": doors[0] if doors else None,
        "budget": {
            "windows": [_window(window) for window in usage.windows],
            "refusedCalls": usage.refused_calls,
        },
    }


def _door(door: policy_pb2.InForce) -> dict[str, Any]:
    return {
        "version": door.version,
        "digest": door.digest,
        "since": _time(door.since),
        "lastKnownGood": door.last_known_good,
        "lastNack": {"reason": door.last_nack.reason, "message": door.last_nack.message}
        if door.HasField("last_nack")
        else None,
        "policy": json.loads(door.payload) if door.payload else None,
    }


def _window(window: budget_pb2.Window) -> dict[str, Any]:
    return {
        "window": _WINDOWS.get(window.kind, "?"),
        "usedTokens": window.used_tokens,
        "reservedTokens": window.reserved_tokens,
        "limitTokens": window.limit_tokens,
        "resetsAt": _time(window.resets_at),
    }


def _print(found: dict[str, Any]) -> None:
    out, door = output.console(), found["inForce"]
    if door is None or not door["version"]:
        out.print(f"{found['sandbox']}: [bold red]no policy in force[/]; every call is denied")
        return
    out.print(f"[bold]{found['sandbox']}[/]: version {door['version']}, in force since {door['since']}")
    out.print(f"digest {door['digest']}", soft_wrap=True)
    if door["lastKnownGood"]:
        out.print("[yellow]last known good[/]: read from disk, no controller has confirmed it since")
    if door["lastNack"]:
        nack = door["lastNack"]
        out.print(f"[red]refused a newer one[/]: {escape(nack['reason'])}: {escape(nack['message'])}")
    policy = door["policy"] or {}
    _sources(policy)
    _models(policy)
    _governance(policy.get("governance") or {})
    _budget(found["budget"], policy)


def _sources(policy: dict[str, Any]) -> None:
    rows = [
        (item.get("kind", ""), item.get("name", ""), str(item.get("generation", 0)), item.get("digest", ""))
        for item in policy.get("sources") or ()
    ]
    output.console().print("\n[bold]Sources[/]")
    output.table(("Kind", "Name", "Generation", "Digest"), rows)


def _models(policy: dict[str, Any]) -> None:
    models = (policy.get("inference") or {}).get("models") or []
    named = ", ".join(f"{model['deployment']} ({model['provider']})" for model in models)
    output.console().print(f"\n[bold]Models[/]  {escape(named) or 'none'}")


def _governance(rules: dict[str, Any]) -> None:
    out = output.console()
    default = str(rules.get("defaultVerdict", "")).removeprefix("VERDICT_").lower() or "deny"
    out.print(f"\n[bold]Rules[/]  what no rule names: {default}")
    rows = []
    for rule in rules.get("rules") or ():
        capability, approval, rate = rule.get("capability"), rule.get("approval"), rule.get("rateLimit")
        if capability is not None:
            rows.append((rule["name"], "allow", " ".join(capability.get("allowedActions") or ())))
            rows.append((rule["name"], "deny", " ".join(capability.get("deniedActions") or ())))
        if approval is not None:
            rows.append((rule["name"], "approval", " ".join(approval.get("actions") or ())))
        if rate is not None:
            window_s = int(rate.get("windowMs", 0)) // 1000
            limit = f"{rate.get('maxCalls')} in {window_s} s: {' '.join(rate.get('actions') or ())}"
            rows.append((rule["name"], "rate limit", limit))
    output.table(("Rule", "Says", "Actions"), [row for row in rows if row[2]])


def _budget(budget: dict[str, Any], policy: dict[str, Any]) -> None:
    cap = ((policy.get("inference") or {}).get("tokenBudget") or {}).get("perRequestTokens")
    per_call = f"; at most {cap} a call" if cap else ""
    output.console().print(f"\n[bold]Budget[/]  {budget['refusedCalls']} calls refused this month{per_call}")
    rows = [
        (
            window["window"],
            str(window["usedTokens"]),
            str(window["reservedTokens"]),
            str(window["limitTokens"] or "no limit"),
            window["resetsAt"],
        )
        for window in budget["windows"]
    ]
    output.table(("Window", "Used", "Reserved", "Limit", "Resets"), rows)


def _time(stamp: Timestamp) -> str:
    return stamp.ToDatetime().isoformat(timespec="seconds") + "Z" if stamp.ByteSize() else ""

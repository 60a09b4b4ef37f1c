"""Isolation controls as people read them."""

from collections.abc import Iterable
from typing import Any

from kars.sandbox.v1 import sandbox_pb2

from kars_cli import output

_STATES = {
    sandbox_pb2.CONTROL_STATE_ENFORCED: "enforced",
    sandbox_pb2.CONTROL_STATE_DEGRADED: "degraded",
    sandbox_pb2.CONTROL_STATE_UNAVAILABLE: "unavailable",
}


def state(control: sandbox_pb2.IsolationControl) -> str:
    """Return the state in one word."""
    return _STATES.get(control.state, "unknown")


def table(controls: Iterable[sandbox_pb2.IsolationControl]) -> None:
    """Print controls, one a line."""
    rows = [(control.name, state(control), control.detail, control.remedy) for control in controls]
    output.table(("Control", "State", "Detail", "Remedy"), rows)


def data(controls: Iterable[sandbox_pb2.IsolationControl]) -> list[dict[str, Any]]:
    """Return controls for programs."""
    return [
        {
            "name": control.name,
            "state": state(control),
            "detail": control.detail,
            "remedy": control.remedy,
        }
        for control in controls
    ]

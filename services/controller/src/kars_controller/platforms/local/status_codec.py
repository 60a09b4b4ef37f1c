"""Pod statuses as JSON values, for the control socket."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from kars_controller.platforms.base import (
    ContainerState,
    ContainerStatus,
    ControlState,
    IsolationControl,
    PodPhase,
    PodStatus,
    SandboxKey,
)


def encode(status: PodStatus) -> dict[str, Any]:
    """Return a status as plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(status), default=_instant))
    return plain


def decode(plain: Mapping[str, Any]) -> PodStatus:
    """Return the status that `encode` wrote.

    Raises:
        ValueError, KeyError, TypeError: it is something else.
    """
    return PodStatus(
        key=SandboxKey(*plain["key"]),
        uid=plain["uid"],
        plan_digest=plain["plan_digest"],
        phase=PodPhase(plain["phase"]),
        agent=_container(plain["agent"]),
        router=_container(plain["router"]),
        isolation=tuple(
            IsolationControl(**(control | {"state": ControlState(control["state"])}))
            for control in plain["isolation"]
        ),
    )


def _container(plain: Mapping[str, Any]) -> ContainerStatus:
    times = {
        name: datetime.fromisoformat(plain[name]) if plain[name] else None
        for name in ("started_at", "finished_at")
    }
    return ContainerStatus(**{**plain, **times, "state": ContainerState(plain["state"])})


def _instant(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"cannot encode {type(value).__name__}")

"""One governed call: what it is, and what the gates have learned about it.

The caller is whatever the door says (`door.sandbox`); nothing in a request can
change it. A subclass adds what its kind of call carries; gates that do not
apply to a kind let it pass.
"""

import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from kars_router.governance.actions import Action
from kars_router.inference.output import ChatOutput, Usage
from kars_router.inference.request import ChatRequest
from kars_router.pipeline.door import Door
from kars_router.pipeline.ids import new_call_id
from kars_router.pipeline.policy import CompiledPolicy, Model
from kars_router.pipeline.verdicts import Findings


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One try at one provider, as the audit record keeps it."""

    provider: str
    model: str
    credential: str
    result: str


class CallerGoneError(Exception):
    """The caller hung up, or does not read what it asked for."""


class Release(Protocol):
    """The door's end of a call: how results reach the caller. Written by `api`."""

    async def partial(self, objects: list[dict[str, Any]]) -> None:
        """Send what may be seen before the call is settled. Raises CallerGoneError."""

    async def waiting(self, approval_id: str) -> None:
        """Keep the connection of a held call alive; may do nothing."""

    def watch(self) -> None:
        """From now on, cancel the call's task when the caller hangs up."""


@dataclass(slots=True, kw_only=True, eq=False)
class Call:
    """What every kind of call has.

    Attributes:
        door: the door it came through, and so whose it is.
        release: the way back to the caller.
        trace_id: id that ties the caller's request, logs and records together.
        policy: the policy in force when the call came; set by `identify`, used to the end.
        action: what is decided on; set by the kind.
        reserved: tokens held for it in the budget.
        charged: tokens that it cost; set when it is settled.
        maybe_spent: True when a provider may have worked without telling the usage.
        answered: True when a provider's answer has begun.
    """

    kind: ClassVar[str] = "call"

    door: Door
    release: Release
    trace_id: str
    id: str = field(default_factory=new_call_id)
    started: float = field(default_factory=time.monotonic)
    policy: CompiledPolicy | None = None
    action: Action | None = None
    has_slot: bool = False
    reserved: int = 0
    reservation_day: str = ""
    reservation_open: bool = False
    charged: int = 0
    maybe_spent: bool = False
    answered: bool = False
    admitted_seq: int | None = None
    findings: Findings = field(default_factory=Findings)
    usage: Usage | None = None

    @property
    def in_force(self) -> CompiledPolicy:
        """Return the policy that `identify` found; a gate before it has no business asking."""
        if self.policy is None:
            raise RuntimeError("identify has not run")
        return self.policy

    def record(self) -> Mapping[str, Any]:
        """Return what the audit record says about this kind of call."""
        return {}


@dataclass(slots=True, kw_only=True, eq=False)
class InferenceCall(Call):
    """A model call in the chat-completions format.

    Attributes:
        request: what the caller asked for, validated.
        model: the model that is asked; set by `decide`, changed by `dispatch` when it falls back.
        models: the models that policy allows for this call, in order; set by `decide`.
        max_output: output bound per choice that is sent; set by `reserve`.
        answer: objects from the provider; set by `dispatch`.
        output: guard state of the answer; set by `guard_output`.
        provider_headers: rate-limit headers that the caller may see.
    """

    kind: ClassVar[str] = "chat_completions"

    request: ChatRequest
    model: str = ""
    models: tuple[Model, ...] = ()
    max_output: int = 0
    attempts: list[Attempt] = field(default_factory=list)
    answer: AsyncGenerator[dict[str, Any], None] | None = None
    output: ChatOutput | None = None
    provider_headers: list[tuple[bytes, bytes]] = field(default_factory=list)

    def record(self) -> Mapping[str, Any]:
        """Return model, provider, attempts and usage."""
        fields: dict[str, Any] = {"model": self.model, "stream": self.request.stream}
        if len(self.attempts) == 1:
            only = self.attempts[0]
            fields |= {"provider": only.provider, "key": only.credential, "result": only.result}
        elif self.attempts:
            fields["attempts"] = [
                {"provider": a.provider, "model": a.model, "key": a.credential, "result": a.result}
                for a in self.attempts
            ]
        if self.usage is not None:
            fields["input_tokens"] = self.usage.input_tokens
            fields["output_tokens"] = self.usage.output_tokens
        return fields


@dataclass(slots=True, kw_only=True, eq=False)
class ToolCall(Call):
    """A tool call that the agent's runtime asks about before it runs it (contract v1).

    Attributes:
        named_action: the action as the runtime wrote it.
        context: further keys for conditions, as the runtime gave them.
    """

    kind: ClassVar[str] = "tool"

    named_action: str
    context: Mapping[str, str] = field(default_factory=dict)

"""The `guard_input` and `guard_output` gates."""

import contextlib
from collections.abc import Callable
from typing import Protocol

from kars_router.governance.gate import ToolJudge
from kars_router.guardrails.redaction import SecretScanner
from kars_router.inference.output import ChatOutput, RefusedAnswerError, provider_error
from kars_router.pipeline.call import Call, InferenceCall
from kars_router.pipeline.verdicts import ADMIT, Deny, Outcome, Verdict


class Durability(Protocol):
    """Waits until a record is on disk."""

    async def durable(self, seq: int) -> None:
        """Return when the record, and all before it, are durable."""


class GuardInputGate:
    """Bounds that policy sets on what is sent to a model."""

    name = "guard_input"

    async def admit(self, call: Call) -> Verdict:
        """Refuse a request larger than policy allows."""
        if isinstance(call, InferenceCall):
            limit = call.in_force.limits.max_request_bytes
            if limit and call.request.body_bytes > limit:
                return Deny(
                    status=413,
                    error_type="invalid_request_error",
                    code="request_too_large",
                    message=f"the request is larger than the policy's {limit} bytes",
                )
        return ADMIT

    def settle(self, call: Call, outcome: Outcome) -> None:
        """Nothing to give back."""


class GuardOutputGate:
    """Reads the answer to its end, releasing text as it is found clean and keeping the rest.

    Whole answers and streams take the same way; a whole answer merely has
    nothing to release early.
    """

    name = "guard_output"

    def __init__(
        self,
        *,
        scanner: Callable[[], SecretScanner],
        judge: ToolJudge,
        durability: Durability,
        on_redaction: Callable[[str], None] = lambda _kind: None,
    ) -> None:
        self._scanner = scanner
        self._judge = judge
        self._durability = durability
        self._on_redaction = on_redaction

    async def admit(self, call: Call) -> Verdict:
        """Guard the answer; then decide on the tool calls it asks for."""
        if not isinstance(call, InferenceCall):
            return ADMIT
        output = call.output = self._output(call)
        try:
            await self._read(call, output)
        except RefusedAnswerError as exc:
            return exc.denial
        finally:
            call.usage = output.usage
        if not output.complete:
            return provider_error("the provider's answer ended before it was complete")
        tools = output.tools
        return self._judge.decide(call, tools) if tools else ADMIT

    def settle(self, call: Call, outcome: Outcome) -> None:
        """Nothing to give back."""

    def _output(self, call: InferenceCall) -> ChatOutput:
        redactions = call.findings.redactions

        def count(kind: str) -> None:
            redactions[kind] = redactions.get(kind, 0) + 1
            self._on_redaction(kind)

        return ChatOutput(
            stream=call.request.stream,
            wants_usage=call.request.wants_usage,
            floor=call.in_force.floor,
            scanner=self._scanner(),
            count_redaction=count,
        )

    async def _read(self, call: InferenceCall, output: ChatOutput) -> None:
        if call.answer is None or call.admitted_seq is None:
            raise RuntimeError("guard_output before dispatch or without an admission record")
        released = False
        async with contextlib.aclosing(call.answer) as answer:
            async for document in answer:
                ready = output.feed(document)
                if not ready:
                    continue
                if not released:
                    # Nothing leaves before the record that it was let through is on disk.
                    await self._durability.durable(call.admitted_seq)
                    released = True
                await call.release.partial(ready)

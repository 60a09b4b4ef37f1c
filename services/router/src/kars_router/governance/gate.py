"""The `decide` gate, and the decision on tool calls that a model's answer asks for."""

from collections.abc import Mapping, Sequence

from kars_router.governance import actions
from kars_router.governance.actions import Action, Redact
from kars_router.governance.engine import Ruling
from kars_router.governance.engine import Verdict as EngineVerdict
from kars_router.inference.output import ToolRequest
from kars_router.inference.request import tool_name
from kars_router.mesh.calls import MeshCall
from kars_router.mesh.gate import judge_access
from kars_router.pipeline.call import Call, InferenceCall, ToolCall
from kars_router.pipeline.verdicts import ADMIT, DecidedBy, Decision, Deny, Hold, Outcome, Verdict

_MAX_DETAIL_BYTES = 4096
_MAX_HELD_TOGETHER = 16
_CUT_BYTES = 40
_TOOLS = DecidedBy.TOOL_POLICY


class DecideGate:
    """Asks the governance engine whether the call may happen at all."""

    name = "decide"

    def __init__(self, redact: Redact) -> None:
        self._redact = redact

    async def admit(self, call: Call) -> Verdict:
        """Settle on the model and the action, and judge them."""
        if isinstance(call, InferenceCall):
            return self._inference(call)
        if isinstance(call, ToolCall):
            context = {**call.context, **_context(call)}
            call.action = actions.canonical(call.named_action, self._redact, context=context)
            return _judge(call, call.action, detail=call.action.shown)
        if isinstance(call, MeshCall):
            return self._mesh(call)
        return _denied("this kind of call is not governed", DecidedBy.ROUTER)

    def _mesh(self, call: MeshCall) -> Verdict:
        context = {**_context(call), "mesh.operation": call.operation, "mesh.peer": call.peer}
        call.action = actions.canonical(call.named_action, self._redact, context=context)
        size = f"{call.envelopes} envelopes, {call.size_bytes} bytes"
        return judge_access(call) or _judge(call, call.action, detail=f"{call.action.shown}: {size}")

    def settle(self, call: Call, outcome: Outcome) -> None:
        """Nothing to give back."""

    def _inference(self, call: InferenceCall) -> Verdict:
        call.models = call.in_force.candidates(call.request.model)
        if not call.models:
            asked = actions.shown(call.request.model, self._redact)[:64]
            call.action = actions.canonical(f"inference:chat_completions:{asked}", self._redact)
            what = f"model {asked!r} is not allowed by policy" if asked else "policy allows no model"
            return _denied(what, DecidedBy.INFERENCE_POLICY)
        call.model = call.models[0].deployment
        call.action = actions.simple(f"inference:chat_completions:{call.model}", context=_context(call))
        verdict = _judge(call, call.action, detail=f"model call to {call.model}")
        if isinstance(verdict, Deny):
            return verdict
        denial = self._filter_tools(call)
        return denial or verdict

    def _filter_tools(self, call: InferenceCall) -> Deny | None:
        """Take tools out of the request that policy would never let the model call; charges no rate limit."""
        body = call.request.body
        engine = call.in_force.engine
        for key in ("tools", "functions"):
            offered = body.get(key)
            if not offered:
                body.pop(key, None)
                continue
            context = _context(call)
            kept = [tool for tool in offered if engine.offers(tool_name(tool), context)]
            if len(kept) == len(offered):
                continue
            removed = [tool_name(tool) for tool in offered if tool not in kept]
            call.findings.removed_tools.extend(
                actions.shown(name, self._redact)[:64] for name in removed[:32]
            )
            body[key] = kept
            if not kept:
                del body[key]
        for key, choice in (("tools", "tool_choice"), ("functions", "function_call")):
            wanted = body.get(choice)
            names = {tool_name(tool) for tool in body.get(key, ())}
            if isinstance(wanted, dict) and tool_name(wanted) not in names:
                return _denied(f"{choice} names a tool that policy does not allow", DecidedBy.TOOL_POLICY)
            if key not in body:
                body.pop(choice, None)
        if "tools" not in body:
            body.pop("parallel_tool_calls", None)
        return None


class ToolJudge:
    """Decides on the tool calls of one answer, all of them together."""

    def __init__(self, redact: Redact) -> None:
        self._redact = redact

    def decide(self, call: InferenceCall, requests: Sequence[ToolRequest]) -> Verdict:
        """Return a denial if one is denied, else a hold if one needs approval, else admit."""
        context = _context(call)
        held: list[tuple[Action, EngineVerdict]] = []
        details: list[str] = []
        declared = _declared(call)
        for request in requests:
            action = actions.tool_call(
                request.name,
                request.arguments,
                self._redact,
                context,
                order=declared.get(request.name, ()),
                plain=request.kind == "custom",
            )
            call.findings.tool_actions.append(action.shown)
            verdict = call.in_force.engine.evaluate(action, call.door.rates)
            if verdict.ruling in {Ruling.DENY, Ruling.RATE_LIMITED}:
                return _refusal(action, verdict)
            details.append(f"{request.name}({request.arguments})")
            if verdict.ruling is Ruling.REQUIRES_APPROVAL:
                held.append((action, verdict))
        if not held:
            return ADMIT
        action, verdict = held[0]
        if len(details) > _MAX_HELD_TOGETHER:
            return _denied("the answer asks for more tool calls than a person can be shown at once", _TOOLS)
        detail = "\n".join(self._shown(text, _MAX_DETAIL_BYTES // len(details)) for text in details)
        needed = max(item.min_approvals for _, item in held)
        return Hold(action=action.shown, detail=detail, rule=verdict.rule, min_approvals=needed)

    def _shown(self, text: str, room: int) -> str:
        """Return one tool call on one line; a cut says how much it hides, so that nobody grants unseen."""
        line = "".join(
            char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in self._redact(text)
        )
        raw = line.encode("utf-8", "replace")
        if len(raw) < room:
            return line
        kept = raw[: room - _CUT_BYTES].decode("utf-8", "ignore")
        return f"{kept} …({len(raw) - room + _CUT_BYTES} bytes more)"


def _declared(call: InferenceCall) -> Mapping[str, Sequence[str]]:
    """Return the parameters of each offered tool in declared order."""
    found: dict[str, Sequence[str]] = {}
    body = call.request.body
    functions = [tool.get("function") for tool in body.get("tools", ())] + list(body.get("functions", ()))
    for function in functions:
        parameters = function.get("parameters") if isinstance(function, dict) else None
        properties = parameters.get("properties") if isinstance(parameters, dict) else None
        if isinstance(properties, dict):
            found[str(function["name"])] = tuple(properties)
    return found


def _context(call: Call) -> Mapping[str, str]:
    """Return the keys that conditions may rely on: what the router knows, not what a caller claims."""
    keys = {"sandbox": call.door.name, "namespace": call.door.namespace, "kind": call.kind}
    if isinstance(call, InferenceCall):
        keys["model"] = call.model
    return keys


def _judge(call: Call, action: Action, *, detail: str) -> Verdict:
    verdict = call.in_force.engine.evaluate(action, call.door.rates)
    if verdict.ruling is Ruling.ALLOW:
        return ADMIT
    if verdict.ruling is Ruling.REQUIRES_APPROVAL:
        return Hold(
            action=action.shown, detail=detail, rule=verdict.rule, min_approvals=verdict.min_approvals
        )
    return _refusal(action, verdict)


def _refusal(action: Action, verdict: EngineVerdict) -> Deny:
    by = DecidedBy.INFERENCE_POLICY if action.verb == "inference" else DecidedBy.TOOL_POLICY
    if verdict.ruling is Ruling.RATE_LIMITED:
        return Deny(
            status=429,
            error_type="rate_limit_error",
            code="rate_limit_exceeded",
            message=f"rate limit of rule {verdict.rule} reached",
            decision=Decision.RATE_LIMITED,
            decided_by=by,
            retry_after_s=verdict.retry_after_s,
        )
    return _denied(f"Blocked by governance policy: {action.shown}: {verdict.reason}", by)


def _denied(message: str, by: DecidedBy) -> Deny:
    return Deny(
        status=403, error_type="policy_violation", code="policy_denied", message=message, decided_by=by
    )

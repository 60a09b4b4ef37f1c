"""The governance engine: GovernanceRules compiled, and one verdict for one action.

Semantics (router.md 3.5 with register rows 19 to 22 closed):

1. Capability and approval rules by descending priority, then file order; the
   first that speaks wins. No rule speaks: the policy's default verdict.
2. Other names of the same act (`tool:exec_command:...` beside `shell:...`): an
   explicit denial or approval rule counts, the default does not.
3. A tool's own approval switch.
4. Rate limits: every matching rate-limit rule and the tool's bucket must have
   room. They are charged only for what is otherwise allowed, and not at all
   when a caller merely asks (`charge=False`).

Counters live in `RateState`, which outlives a policy swap.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kars.policy.v1 import policy_pb2

from kars_router.governance import actions, shell
from kars_router.governance.actions import Action
from kars_router.governance.patterns import PatternSet
from kars_router.governance.rates import RateState

_CACHE_ENTRIES = 2048


class PolicyCompileError(ValueError):
    """The rules cannot be compiled; the bundle must be refused."""

    reason = "compile_failed"


class Ruling(enum.Enum):
    """What the engine says."""

    ALLOW = "allow"
    DENY = "deny"
    REQUIRES_APPROVAL = "requires_approval"
    RATE_LIMITED = "rate_limited"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A ruling with the rule that made it; `rule` is empty when the default spoke."""

    ruling: Ruling
    rule: str = ""
    reason: str = ""
    min_approvals: int = 1
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    name: str
    conditions: tuple[tuple[str, frozenset[str]], ...]
    denied: PatternSet | None = None
    allowed: PatternSet | None = None
    approval: PatternSet | None = None
    limited: PatternSet | None = None
    min_approvals: int = 1
    max_calls: int = 0
    window_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tool:
    name: str
    rate_rps: int
    burst: int
    approval: bool


class Engine:
    """Compiled rules of one sandbox. Immutable but for its cache; safe to swap at any moment."""

    def __init__(self, rules: policy_pb2.GovernanceRules) -> None:
        """Compile the rules.

        Raises:
            PolicyCompileError: a rule has no type, a bound is out of range, or the default is missing.
        """
        defaults = {policy_pb2.VERDICT_ALLOW: Ruling.ALLOW, policy_pb2.VERDICT_DENY: Ruling.DENY}
        defaults[policy_pb2.VERDICT_REQUIRES_APPROVAL] = Ruling.REQUIRES_APPROVAL
        # An unset default is a denial: what is not said is not allowed.
        self._default = defaults.get(rules.default_verdict, Ruling.DENY)
        # The sort is stable, so equal priorities keep file order (register 19).
        ordered = sorted(rules.rules, key=lambda rule: -rule.priority)
        compiled = [_compile(rule) for rule in ordered]
        self._speaking = tuple(rule for rule in compiled if rule.limited is None)
        self._limits = tuple(rule for rule in compiled if rule.limited is not None)
        self._tools = tuple(_compile_tool(tool) for tool in rules.tools if not _of_mcp_server(tool))
        self._cacheable = not any(rule.conditions for rule in compiled)
        self._cache: dict[tuple[str, str | None, str, bool], Verdict | None] = {}
        self.rule_count = len(compiled)

    def evaluate(self, action: Action, rates: RateState, *, charge: bool = True) -> Verdict:
        """Decide on one action; charges rate limits only when it would pass and `charge` is set."""
        verdict = self._speak(action) or Verdict(ruling=self._default, reason="no rule allows this action")
        for other in action.also:
            if verdict.ruling is Ruling.DENY:
                break
            second = self._speak(other)
            if second is not None and second.ruling is not Ruling.ALLOW:
                verdict = second
        if verdict.ruling is Ruling.DENY:
            return verdict
        tools = [tool for tool in self._tools if action.tool and tool.name in {"*", action.tool}]
        if verdict.ruling is Ruling.ALLOW and any(tool.approval for tool in tools):
            verdict = Verdict(
                ruling=Ruling.REQUIRES_APPROVAL, rule=f"tool:{action.tool}", reason="the tool needs approval"
            )
        limited = self._limit(action, tools, rates, charge=charge)
        return limited or verdict

    def offers(self, tool: str, context: Mapping[str, str]) -> bool:
        """Tell whether a tool may be shown to a model: some call of it could pass. Charges nothing."""
        for name in (f"tool.invoke:{tool}", f"tool:{tool}"):
            spoken = self._speak(actions.simple(name, tool=tool, context=context))
            if spoken is not None:
                return spoken.ruling is not Ruling.DENY
        if self._default is not Ruling.DENY:
            return True
        prefixes = [f"tool:{tool}:"]
        if tool in actions.SHELL_TOOLS:
            prefixes.append("shell:")
        if tool in actions.URL_TOOLS:
            prefixes.append("egress:")
        lists = [
            patterns for rule in self._speaking for patterns in (rule.allowed, rule.approval) if patterns
        ]
        return any(patterns.mentions(prefix) for patterns in lists for prefix in prefixes)

    def _speak(self, action: Action) -> Verdict | None:
        if not self._cacheable:
            return self._speak_uncached(action)
        key = (action.text, action.raw_command, action.tool, action.opaque)
        if key in self._cache:
            return self._cache[key]
        verdict = self._speak_uncached(action)
        if len(self._cache) >= _CACHE_ENTRIES:
            self._cache.clear()
        if len(action.text) <= 1024:
            self._cache[key] = verdict
        return verdict

    def _speak_uncached(self, action: Action) -> Verdict | None:
        command = _command(action)
        for rule in self._speaking:
            if _holds(rule, action):
                verdict = _rule_verdict(rule, action, command)
                if verdict is not None:
                    return verdict
        return None

    def _limit(
        self, action: Action, tools: Sequence[_Tool], rates: RateState, *, charge: bool
    ) -> Verdict | None:
        if not self._limits and not tools:
            return None
        command = _command(action)
        windows = [
            rule
            for rule in self._limits
            if rule.limited is not None and _holds(rule, action) and rule.limited.denies(action, command)
        ]
        buckets = [tool for tool in tools if tool.rate_rps > 0]
        for rule in windows:
            wait_s = rates.window_wait(rule.name, rule.max_calls, rule.window_s)
            if wait_s is not None:
                return _rate_limited(rule.name, wait_s)
        for tool in buckets:
            # The key is the tool's name, never its arguments (register 22).
            wait_s = rates.bucket_wait(action.tool, tool.rate_rps, tool.burst)
            if wait_s is not None:
                return _rate_limited(f"tool:{action.tool}", wait_s)
        if charge:
            for rule in windows:
                rates.charge_window(rule.name, rule.window_s)
            for _ in buckets[:1]:
                rates.charge_bucket(action.tool)
        return None


def _rate_limited(rule: str, wait_s: float) -> Verdict:
    return Verdict(
        ruling=Ruling.RATE_LIMITED,
        rule=rule,
        reason="the policy's rate limit is reached",
        retry_after_s=wait_s,
    )


def _command(action: Action) -> shell.ShellCommand | None:
    if action.raw_command is None:
        return None
    command = shell.parse(action.raw_command)
    if action.opaque:
        return shell.ShellCommand(simple=command.simple, words=command.words, opaque=True)
    if action.raw_command.endswith("...") and len(action.raw_command.encode("utf-8", "replace")) >= 240:
        # The caller cut it (contract 8.2): what was cut off is unknown.
        return shell.ShellCommand(simple=command.simple, words=command.words, opaque=True)
    return command


def _holds(rule: _Rule, action: Action) -> bool:
    return all(action.context.get(key) in values for key, values in rule.conditions)


def _rule_verdict(rule: _Rule, action: Action, command: shell.ShellCommand | None) -> Verdict | None:
    if rule.approval is not None:
        if rule.approval.denies(action, command):
            return Verdict(
                ruling=Ruling.REQUIRES_APPROVAL,
                rule=rule.name,
                reason="an operator must approve this",
                min_approvals=rule.min_approvals,
            )
        return None
    if rule.denied is not None and rule.denied.denies(action, command):
        return Verdict(ruling=Ruling.DENY, rule=rule.name, reason=f"denied by rule {rule.name}")
    if rule.allowed:
        if rule.allowed.allows(action, command):
            return Verdict(ruling=Ruling.ALLOW, rule=rule.name)
        in_scope = rule.allowed.allow_scope(action, command)
        if in_scope or (rule.denied is not None and rule.denied.deny_scope(action)):
            return Verdict(
                ruling=Ruling.DENY, rule=rule.name, reason=f"not in the allow list of rule {rule.name}"
            )
    return None


def _compile(rule: policy_pb2.Rule) -> _Rule:
    conditions = tuple((item.key, frozenset(item.any_of)) for item in rule.conditions)
    kind = rule.WhichOneof("rule")
    if kind == "capability":
        return _Rule(
            name=rule.name,
            conditions=conditions,
            denied=PatternSet(rule.capability.denied_actions),
            allowed=PatternSet(rule.capability.allowed_actions),
        )
    if kind == "approval":
        return _Rule(
            name=rule.name,
            conditions=conditions,
            approval=PatternSet(rule.approval.actions),
            min_approvals=max(1, rule.approval.min_approvals),
        )
    if kind == "rate_limit":
        limit = rule.rate_limit
        if limit.max_calls < 1 or limit.window_ms < 1000:
            raise PolicyCompileError(
                f"rule {rule.name!r}: max_calls must be at least 1 and window_ms at least 1000"
            )
        return _Rule(
            name=rule.name,
            conditions=conditions,
            limited=PatternSet(limit.actions),
            max_calls=limit.max_calls,
            window_s=limit.window_ms / 1000,
        )
    raise PolicyCompileError(f"rule {rule.name!r}: no rule type set")


def _compile_tool(tool: policy_pb2.ToolRule) -> _Tool:
    if tool.rate_rps < 0 or tool.rate_burst < 0:
        raise PolicyCompileError(f"tool {tool.tool!r}: rate must not be negative")
    return _Tool(
        name=tool.tool or "*",
        rate_rps=tool.rate_rps,
        burst=max(1, tool.rate_burst),
        approval=tool.approval_required,
    )


def _of_mcp_server(tool: policy_pb2.ToolRule) -> bool:
    # "Every tool of that MCP server" says nothing about tools that no MCP server offers.
    return bool(tool.mcp_server) and tool.tool in {"", "*"}

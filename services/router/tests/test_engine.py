"""The governance engine: order, patterns, scope, command words, approvals and rate limits."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kars_router.governance import actions
from kars_router.governance.engine import Engine, PolicyCompileError, Ruling
from kars_router.governance.rates import RateState
from kars_router_testkit import bundle
from kars_router_testkit.policies import approval, capability

ALLOW, DENY, ASK, LIMITED = Ruling.ALLOW, Ruling.DENY, Ruling.REQUIRES_APPROVAL, Ruling.RATE_LIMITED


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def engine(*rules: dict[str, Any], default: str = "VERDICT_DENY", tools: Any = ()) -> Engine:
    return Engine(bundle(rules=rules, default=default, tools=tools).governance)


def rate(
    name: str, patterns: list[str], max_calls: int, window_ms: int = 60_000, priority: int = 0
) -> dict[str, Any]:
    rule = {"actions": patterns, "maxCalls": str(max_calls), "windowMs": str(window_ms)}
    return {"name": name, "priority": priority, "rateLimit": rule}


def plain(text: str) -> str:
    return text


def ruling(
    built: Engine, text: str, rates: RateState | None = None, context: dict[str, str] | None = None
) -> Ruling:
    return built.evaluate(actions.canonical(text, plain, context=context), rates or RateState()).ruling


# What the shipped profile says about shells, as in the reference's rules (crds.md, `kars-default`).
DESTRUCTIVE = [
    "rm",
    "mkfs",
    "shutdown",
    "reboot",
    "dd",
    "nmap",
    "nc",
    "netcat",
    "socat",
    "nsenter",
    "unshare",
    "chroot",
]
ORDINARY = ["ls", "cat", "echo", "grep", "head", "tail", "wc", "sort", "find", "git", "python3"]
SHELLS = engine(
    capability("destructive", deny=[f"shell:{word}" for word in DESTRUCTIVE], priority=100),
    capability("ordinary", allow=[f"shell:{word}" for word in ORDINARY], priority=90),
)


def test_router_register_19_priority_decides_then_file_order() -> None:
    low = capability("low", allow=["tool:*"], priority=1)
    high = capability("high", deny=["tool:x"], priority=9)
    assert ruling(engine(low, high), "tool:x") is DENY
    assert ruling(engine(high, low), "tool:x") is DENY
    first, second = capability("a", allow=["tool:*"]), capability("b", deny=["tool:x"])
    assert ruling(engine(first, second), "tool:x") is ALLOW
    assert ruling(engine(second, first), "tool:x") is DENY


def test_router_register_20_rules_of_every_source_count() -> None:
    built = engine(
        capability("one", deny=["tool:a"]), capability("two", deny=["tool:b"]), default="VERDICT_ALLOW"
    )
    assert [ruling(built, f"tool:{name}") for name in "abc"] == [DENY, DENY, ALLOW]
    assert built.rule_count == 2


@pytest.mark.parametrize(
    "command",
    [
        *(
            "rm -rf /",
            "rm",
            "/bin/rm -rf /",
            "sudo rm -rf /",
            "sudo -u root rm x",
            "env A=1 rm x",
            "A=1 rm x",
        ),
        *(
            "ls; rm -rf /",
            "ls && rm x",
            "ls || rm x",
            "ls | rm x",
            "ls & rm x",
            "ls\nrm x",
            "ls\r\nrm x",
            "(rm x)",
        ),
        *(
            "$(rm x)",
            "echo `rm x`",
            "echo $(rm x)",
            "sh -c 'rm x'",
            'bash -c "rm x"',
            "eval rm x",
            "xargs rm",
            "nohup rm x",
        ),
        *(
            "r\\m x",
            "'rm' x",
            '"rm" x',
            "r''m x",
            "find . -exec rm {} +",
            "timeout 5 rm x",
            "busybox rm x",
            "if true; then rm x; fi",
        ),
        *(
            "ls " + "a" * 300 + "; rm x",
            "cat <(rm x)",
            "echo x > /dev/null; rm y",
            "echo ok # \n rm x",
            "time rm x",
        ),
    ],
)
def test_router_register_21_destructive_commands_are_denied_however_they_are_dressed(command: str) -> None:
    assert ruling(SHELLS, f"shell:{command}") is DENY


@pytest.mark.parametrize(
    "command",
    [
        *(
            "ls",
            "ls /tmp",
            "ls -la /tmp",
            "cat notes.md | grep x | wc -l",
            "git status",
            "echo 'rm is a word'",
        ),
        *("/bin/ls /tmp", "LANG=C ls", "echo hi > out.txt", "head -n 5 a; tail -n 5 b", "grep -r 'a;b' ."),
    ],
)
def test_router_register_21_ordinary_commands_are_allowed_with_their_arguments(command: str) -> None:
    assert ruling(SHELLS, f"shell:{command}") is ALLOW


@pytest.mark.parametrize(
    "command",
    [
        "curl http://x",
        "ls; curl x",
        "ls $(curl x)",
        "sh -c ls",
        "ls 'unbalanced",
        "",
        "PATH=. ls",
        "find . -delete",
    ],
)
def test_router_register_21_what_is_not_listed_or_not_certain_is_denied(command: str) -> None:
    assert ruling(SHELLS, f"shell:{command}") is DENY


def test_router_register_21_a_cut_command_is_not_certain() -> None:
    assert ruling(SHELLS, "shell:ls " + "a" * 245 + "...") is DENY


@given(st.text(max_size=60), st.sampled_from(DESTRUCTIVE), st.sampled_from([";", "\n", "&&", "|", "||", "&"]))
def test_router_register_21_nothing_before_a_separator_hides_a_destructive_command(
    before: str, word: str, separator: str
) -> None:
    assert ruling(SHELLS, f"shell:{before} {separator} {word} x") is DENY


def test_router_register_21_the_inference_rate_limit_is_reached_although_an_allow_rule_matches_first() -> (
    None
):
    built = engine(
        capability("allow", allow=["inference:*"], priority=80),
        rate("limit", ["inference:*"], 2, priority=40),
    )
    rates = RateState()
    assert [ruling(built, "inference:chat_completions:m", rates) for _ in range(3)] == [ALLOW, ALLOW, LIMITED]


def test_a_rate_window_opens_again_and_denials_do_not_fill_it() -> None:
    clock = Clock()
    rates = RateState(clock)
    built = engine(capability("c", allow=["tool:a"], deny=["tool:b"]), rate("limit", ["tool:*"], 1, 1000))
    assert ruling(built, "tool:b", rates) is DENY
    assert [ruling(built, "tool:a", rates) for _ in range(2)] == [ALLOW, LIMITED]
    clock.now += 1.0
    assert ruling(built, "tool:a", rates) is ALLOW


def test_router_register_22_a_tools_limit_does_not_look_at_its_arguments() -> None:
    built = engine(default="VERDICT_ALLOW", tools=[{"tool": "search", "rateRps": 1, "rateBurst": 2}])
    rates = RateState(Clock())

    def call(name: str, argument: str) -> Ruling:
        action = actions.tool_call(name, f'{{"q":"{argument}"}}', plain)
        return built.evaluate(action, rates).ruling

    assert [call("search", str(number)) for number in range(3)] == [ALLOW, ALLOW, LIMITED]
    assert call("other", "0") is ALLOW
    assert ruling(built, "tool:search:by the hook", rates) is LIMITED


def test_router_register_26_asking_which_tools_to_offer_charges_nothing() -> None:
    built = engine(
        capability("c", allow=["tool:*"]),
        rate("limit", ["tool*"], 1),
        tools=[{"tool": "*", "rateRps": 1, "rateBurst": 1}],
    )
    rates = RateState(Clock())
    assert all(built.offers(f"t{number}", {}) for number in range(200))
    assert ruling(built, "tool:x", rates) is ALLOW


@pytest.mark.parametrize(
    ("rules", "default", "offered"),
    [
        ([], "VERDICT_DENY", False),
        ([], "VERDICT_ALLOW", True),
        ([capability("c", deny=["tool.invoke:t"])], "VERDICT_ALLOW", False),
        ([capability("c", deny=["tool:t*"])], "VERDICT_ALLOW", False),
        ([capability("c", allow=["tool:t:only-this"])], "VERDICT_DENY", True),
        ([capability("c", allow=["tool:other:*"])], "VERDICT_DENY", False),
        ([approval("a", ["tool:t:*"])], "VERDICT_DENY", True),
        ([capability("c", allow=["*"])], "VERDICT_DENY", True),
    ],
)
def test_a_tool_is_offered_when_some_call_of_it_could_pass(rules: Any, default: str, offered: bool) -> None:
    assert engine(*rules, default=default).offers("t", {}) is offered


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("*", "anything:at all", True),
        ("mcp.*", "mcp.x", True),
        ("mcp.*", "mcpx", False),
        ("tool:pub*", "tool:publish:x", True),
        ("tool:publish", "tool:publish", True),
        ("tool:publish", "tool:publish:x", False),
        ("tool:Publish", "tool:publish", False),
        ("TOOL:publish", "tool:publish", True),
        ("tool:publish", "ToOl:publish", True),
        ("shell:*", "shell:anything $(at) all", True),
        ("shell:git status", "shell:git status -s", True),
        ("shell:git status", "shell:git push", False),
        ("shell:apt*", "shell:apt-get install x", True),
    ],
)
def test_patterns(pattern: str, text: str, matches: bool) -> None:
    assert (ruling(engine(capability("c", allow=[pattern])), text) is ALLOW) is matches


def test_an_allow_list_refuses_the_rest_of_its_family() -> None:
    built = engine(capability("c", allow=["mcp.search.x"]), default="VERDICT_ALLOW")
    assert ruling(built, "mcp.other") is DENY
    assert ruling(built, "tool:x") is ALLOW


def test_conditions_all_hold_and_cannot_be_claimed_over_what_the_router_knows() -> None:
    rule = capability("c", allow=["tool:*"]) | {"conditions": [{"key": "env", "anyOf": ["dev", "ci"]}]}
    built = engine(rule)
    assert ruling(built, "tool:x", context={"env": "ci"}) is ALLOW
    assert ruling(built, "tool:x", context={"env": "prod"}) is DENY
    assert ruling(built, "tool:x") is DENY
    known = engine(
        capability("c", allow=["*"]) | {"conditions": [{"key": "action.category", "anyOf": ["tool"]}]}
    )
    assert ruling(known, "admin:x", context={"action.category": "tool"}) is DENY


def test_approval_rules_and_tool_switches_hold() -> None:
    assert ruling(engine(approval("a", ["tool:p*"], min_approvals=2)), "tool:publish") is ASK
    verdict = engine(approval("a", ["tool:p*"], min_approvals=2)).evaluate(
        actions.canonical("tool:p", plain), RateState()
    )
    assert (verdict.rule, verdict.min_approvals) == ("a", 2)
    switched = engine(default="VERDICT_ALLOW", tools=[{"tool": "publish", "approvalRequired": True}])
    assert ruling(switched, "tool:publish:x") is ASK
    assert ruling(switched, "tool:read:x") is ALLOW


def test_a_shell_tool_is_judged_as_shell_and_by_its_own_name() -> None:
    call = actions.tool_call("exec_command", '{"command":"ls; rm -rf /"}', plain)
    assert SHELLS.evaluate(call, RateState()).ruling is DENY
    harmless = actions.tool_call("exec_command", '{"timeout":5,"command":"ls /tmp"}', plain)
    assert SHELLS.evaluate(harmless, RateState()).ruling is ALLOW
    barred = engine(capability("s", allow=["shell:ls"]), capability("t", deny=["tool:exec_command*"]))
    assert barred.evaluate(harmless, RateState()).ruling is DENY


def test_actions_are_canonical_short_and_clean() -> None:
    action = actions.canonical("TOOL:x\r\ny\x00z:" + "é" * 300, plain)
    assert action.text.startswith("tool:x  y z:")
    assert len(action.shown.encode()) <= 256
    assert action.shown.endswith("...")


@given(st.text(max_size=400))
def test_any_action_text_gets_a_verdict_and_a_bounded_form(text: str) -> None:
    action = actions.canonical(text, plain)
    assert ruling(SHELLS, text) in {ALLOW, DENY}
    assert len(action.shown.encode()) <= 256
    assert not set("\r\n\0") & set(action.shown)


def test_an_unset_default_denies_and_a_rule_without_a_type_is_refused() -> None:
    assert ruling(engine(default="VERDICT_UNSPECIFIED"), "tool:x") is DENY
    for broken in ({"name": "none"}, rate("zero", ["*"], 0), rate("short", ["*"], 1, 10)):
        with pytest.raises(PolicyCompileError):
            engine(broken)

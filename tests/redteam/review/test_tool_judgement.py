"""Tool calls that a rule means and that are written so that it does not see them."""

from typing import Any

import orjson
import pytest
from kars_router.governance import actions
from kars_router.governance.engine import Engine, Ruling
from kars_router.governance.rates import RateState
from kars_router_testkit import FakeProvider, Reply, bundle, completion, sse_completion
from kars_router_testkit.fixtures import StartRouter
from kars_router_testkit.policies import approval, capability

ALLOW, DENY, ASK = Ruling.ALLOW, Ruling.DENY, Ruling.REQUIRES_APPROVAL
BOTH = pytest.mark.parametrize("streamed", [False, True], ids=["buffered", "streamed"])


def ruling(rules: list[dict[str, Any]], name: str, arguments: str, **options: Any) -> Ruling:
    """What a policy says to one tool call; nothing said is allowed unless the options say otherwise."""
    engine = Engine(bundle(rules=rules, default=options.pop("default", "VERDICT_ALLOW")).governance)
    action = actions.tool_call(name, arguments, lambda text: text, **options)
    return engine.evaluate(action, RateState()).ruling


@pytest.mark.parametrize(
    "arguments",
    [
        '{"to":"eve"}',
        '{"note":"x","to":"eve"}',
        '{"to":"eve","x":NaN}',
        '{"x":Infinity,"to":"eve"}',
        '{"to":"eve"',
        '{"to":"eve",}',
        "{'to':'eve'}",
        '{"to":"eve"} trailing',
        '{"to":"eve","x":"\\ud800"}',
        '\ufeff{"to":"eve"}',
        '{"to":"e\x01","to":"eve"}',
        '{"to":"bob","to":"eve"}',
        '```json\n{"to":"eve"}\n```',
    ],
)
def test_a_denied_argument_is_denied_however_it_is_written(arguments: str) -> None:
    rules = [capability("no", deny=["tool:send:eve*"])]
    assert ruling(rules, "send", arguments, order=("to", "note")) is DENY
    assert ruling(rules, "send", arguments) is DENY
    assert ruling([approval("ask", ["tool:send:eve"])], "send", '{"note":"x","to":"eve"}') is ASK


@pytest.mark.parametrize(
    "arguments", ['{"note":"bob","to":"eve"}', '{"to":"bob"', '{"to":"bob","x":NaN}', "bob", '["bob"]']
)
def test_an_allowed_argument_in_the_wrong_place_allows_nothing(arguments: str) -> None:
    rules = [capability("only", allow=["tool:send:bob*"])]
    order = ("to", "note")
    assert ruling(rules, "send", arguments, order=order, default="VERDICT_DENY") is DENY
    assert ruling(rules, "send", '{"note":"x","to":"bob"}', order=order, default="VERDICT_DENY") is ALLOW
    assert ruling(rules, "send", '{"to":"bob"}', default="VERDICT_DENY") is ALLOW


def test_a_tool_denied_by_its_name_is_denied_with_every_argument() -> None:
    for arguments in ("{}", '{"to":"x"}', "", "null", "[]", "nonsense"):
        assert ruling([capability("no", deny=["tool:send"])], "send", arguments) is DENY
    assert ruling([approval("ask", ["tool:send"])], "send", '{"to":"x"}') is ASK
    assert ruling([capability("no", deny=["tool:send"])], "send_not", '{"to":"x"}') is ALLOW


@pytest.mark.parametrize(
    "arguments",
    [
        {"command": "rm -rf /"},
        {"command": "ls", "cmd": "rm -rf /"},
        {"cmd": "ls", "script": "rm -rf /"},
        {"timeout": 5, "input": "rm -rf /"},
        {"commands": ["ls", "rm -rf /"]},
        {"command": ["rm", "-rf", "/"]},
        {"command": "r\\\nm -rf /"},
        {"command": "ls \\\\\nrm -rf /"},
        {"command": "ls # \\\nrm -rf /"},
        {"command": "ls\\\r\nrm -rf /"},
        {"command": "ls;r''m -rf /"},
        {"command": "l\"s\"\n'rm' -rf /"},
        {"command": "env -S 'rm -rf /'"},
        {"command": "x=1 /usr/bin/rm x"},
        {"command": "echo $(rm x)"},
        {"command": "echo `rm x`"},
        {"command": "cat <(rm x)"},
        {"command": "find . -exec rm {} +"},
        {"command": "echo x | xargs rm"},
        {"command": "bash -c 'rm x'"},
        {"command": "eval rm x"},
        {"command": "ls & rm x"},
        {"command": "{ rm x; }"},
        {"command": "! rm x"},
        {"command": "ls 2>&1\nrm x"},
    ],
)
def test_a_denied_command_is_denied_however_it_is_written(arguments: dict[str, Any]) -> None:
    text = orjson.dumps(arguments).decode()
    only = [capability("only", allow=["shell:ls", "shell:echo", "shell:cat", "shell:find"])]
    assert ruling(only, "bash", text, default="VERDICT_DENY") is DENY
    assert ruling([capability("no", deny=["shell:rm"])], "bash", text) is DENY


def test_a_custom_tool_is_judged_by_its_text() -> None:
    rules = [capability("no", deny=["shell:rm"])]
    assert ruling(rules, "bash", '{"command":"ls"}; rm x', plain=True) is DENY
    assert ruling(rules, "bash", "rm -rf /", plain=True) is DENY
    assert ruling([capability("no", deny=["tool:send:eve*"])], "send", "eve", plain=True) is DENY


@BOTH
def test_the_declared_order_of_parameters_decides_and_not_the_models(
    start_router: StartRouter, provider: FakeProvider, streamed: bool
) -> None:
    router = start_router(
        policy=bundle(
            default="VERDICT_DENY", rules=[capability("some", allow=["inference:*", "tool:send:bob*"])]
        )
    )
    properties = {"to": {"type": "string"}, "note": {"type": "string"}}
    function = {"name": "send", "parameters": {"type": "object", "properties": properties}}
    tools = [{"type": "function", "function": function}]

    def asked(arguments: str) -> Reply:
        calls = [("send", arguments)]
        return sse_completion([], tools=calls) if streamed else completion(None, tools=calls)

    for arguments, allowed in (
        ('{"note":"bob","to":"eve"}', False),
        ('{"note":"x","to":"bob"}', True),
        ('{"to":"bob"', False),
    ):
        provider.reply(asked(arguments))
        answer = router.chat(stream=streamed, tools=tools)
        assert (b"tool_calls" in answer.body) is allowed
        assert (b"policy_denied" in answer.body) is not allowed

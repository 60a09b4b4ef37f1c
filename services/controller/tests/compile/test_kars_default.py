"""The shipped default policy, every rule of it, judged by the router's own engine."""

import pytest
from kars_controller import shipped
from kars_controller.api_types import parse_spec
from kars_controller.compile.governance import compile_governance
from kars_router.governance import actions
from kars_router.governance.engine import Engine, Ruling
from kars_router.governance.rates import RateState


@pytest.fixture(scope="module")
def engine() -> Engine:
    (document,) = shipped.documents()
    return Engine(compile_governance(parse_spec(document)))


def ruling(engine: Engine, action: str) -> Ruling:
    return engine.evaluate(actions.canonical(action, lambda text: text), RateState()).ruling


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("shell:rm -rf /", Ruling.DENY),
        ("shell:rm", Ruling.DENY),
        ("shell:/bin/rm -rf /", Ruling.DENY),
        ("shell:sudo rm -rf /", Ruling.DENY),
        ("shell:ls; rm -rf /", Ruling.DENY),
        ("shell:ls && /usr/bin/env rm x", Ruling.DENY),
        ("shell:echo $(rm -rf /)", Ruling.DENY),
        ("shell:sh -c 'rm -rf /'", Ruling.DENY),
        ("shell:find / -delete", Ruling.DENY),
        ("shell:mkfs.ext4 /dev/sda", Ruling.DENY),
        ("shell:dd if=/dev/zero of=/dev/sda", Ruling.DENY),
        ("shell:nc -l 1", Ruling.DENY),
        ("shell:nsenter -t 1", Ruling.DENY),
        ("shell:unshare -r", Ruling.DENY),
        ("shell:chroot /x", Ruling.DENY),
        ("shell:shutdown now", Ruling.DENY),
        ("shell:reboot", Ruling.DENY),
        ("shell:python3 -c 'import os'", Ruling.DENY),
        ("shell:ls /tmp", Ruling.ALLOW),
        ("shell:ls", Ruling.ALLOW),
        ("shell:cat a.txt | grep x | wc -l", Ruling.ALLOW),
        ("shell:find . -name '*.md'", Ruling.ALLOW),
        ("shell:mkdir -p out", Ruling.ALLOW),
        ("inference:chat_completions:gpt", Ruling.ALLOW),
        ("image_generation:x", Ruling.ALLOW),
        ("output:text", Ruling.ALLOW),
        ("foundry:agents:list", Ruling.ALLOW),
        ("spawn:create:helper", Ruling.ALLOW),
        ("mesh:send:peer", Ruling.ALLOW),
        ("tool:read_file:a.txt", Ruling.ALLOW),
        ("tool.invoke:read_file", Ruling.ALLOW),
        ("admin:bulk-delete", Ruling.REQUIRES_APPROVAL),
        ("admin:promote:x", Ruling.REQUIRES_APPROVAL),
        ("admin:list", Ruling.ALLOW),
        ("egress:https://example.com", Ruling.DENY),
        ("mcp:server:tool", Ruling.DENY),
        ("memory:write", Ruling.DENY),
        ("channel:telegram:send", Ruling.DENY),
        ("unheard-of", Ruling.DENY),
    ],
)
def test_router_register_21_the_default_profile_means_what_it_says(
    engine: Engine, action: str, expected: Ruling
) -> None:
    assert ruling(engine, action) is expected


@pytest.mark.parametrize("command", ["rm -rf /", "ls; rm x"])
def test_a_shell_tool_is_judged_by_its_command(engine: Engine, command: str) -> None:
    call = actions.tool_call("bash", f'{{"command": "{command}"}}', lambda text: text)
    assert engine.evaluate(call, RateState()).ruling is Ruling.DENY


def test_the_inference_rate_limit_is_reached(engine: Engine) -> None:
    rates = RateState()
    action = actions.canonical("inference:chat_completions:gpt", lambda text: text)
    rulings = [engine.evaluate(action, rates).ruling for _ in range(501)]
    assert rulings[499:] == [Ruling.ALLOW, Ruling.RATE_LIMITED]

"""Getting more granted than the person who grants has seen, and acting without a record."""

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars_common.audit import AuditLog
from kars_router.audit.recorder import CallRecorder
from kars_router.governance.gate import ToolJudge
from kars_router.inference.output import ToolRequest
from kars_router.inference.request import parse_chat
from kars_router.pipeline.call import InferenceCall
from kars_router.pipeline.door import Door, DoorDefaults
from kars_router.pipeline.policy import CompiledPolicy
from kars_router.pipeline.verdicts import Admit, Deny, Ending, Hold, Outcome
from kars_router_testkit import RouterProcess, bundle
from kars_router_testkit.policies import approval


class Nobody:
    """A way back that leads nowhere."""

    async def partial(self, objects: list[dict[str, Any]]) -> None:
        """Send nothing."""

    async def waiting(self, approval_id: str) -> None:
        """Tell nobody."""

    def watch(self) -> None:
        """Watch nobody."""


def a_call(*rules: dict[str, Any]) -> InferenceCall:
    """A call under a policy."""
    request = parse_chat({"messages": [{"role": "user", "content": "x"}]})
    call = InferenceCall(
        door=Door(namespace="team", name="agent", defaults=DoorDefaults()),
        release=Nobody(),
        trace_id="t",
        request=request,
    )
    call.policy = CompiledPolicy.compile(bundle(rules=rules), b"", "sha256:0")
    return call


def asked(*calls: tuple[str, str]) -> list[ToolRequest]:
    """Tool calls of an answer."""
    return [ToolRequest(name=name, arguments=arguments) for name, arguments in calls]


def judged(*calls: tuple[str, str]) -> Admit | Deny | Hold:
    """What becomes of an answer when every `pay` needs approval."""
    return ToolJudge(lambda text: text).decide(a_call(approval("ask", ["tool:pay*"])), asked(*calls))


def test_a_long_first_call_does_not_hide_the_second_from_the_approver() -> None:
    verdict = judged(("pay", '{"to":"' + "a" * 50_000 + '"}'), ("pay", '{"to":"eve","sum":1000000}'))
    assert isinstance(verdict, Hold)
    assert 'pay({"to":"eve","sum":1000000})' in verdict.detail
    assert "bytes more" in verdict.detail
    assert len(verdict.detail.encode()) <= 4096


def test_more_calls_than_can_be_shown_are_not_granted_together() -> None:
    verdict = judged(*[("pay", '{"to":"bob"}')] * 200, ("pay", '{"to":"eve"}'))
    assert isinstance(verdict, Deny)


@pytest.mark.parametrize("argument", ['x"\nread({})', "\x1b[2J\x1b[H", "\u202egnp.exe", "\r", "\u2028"])
def test_an_argument_cannot_draw_another_call_for_the_approver(argument: str) -> None:
    verdict = judged(("pay", argument), ("read", "{}"))
    assert isinstance(verdict, Hold)
    assert len(verdict.detail.split("\n")) == 2
    assert all(char.isprintable() or char == "\n" for char in verdict.detail)


async def test_every_tool_call_of_an_answer_is_on_record(tmp_path: Any) -> None:
    for count in (0, 1, 31, 32, 33, 64, 65, 250):
        log = AuditLog.open(tmp_path / str(count), "o", Ed25519PrivateKey.generate())
        call = a_call()
        requests = asked(*(("read", f'{{"n":{number}}}') for number in range(count)))
        ToolJudge(lambda text: text).decide(call, requests)
        call.admitted_seq = 0
        CallRecorder(log).ended(call, Outcome(ending=Ending.COMPLETED), awaited=False)
        kept: list[Any] = [record.get("tool_actions", []) for record in log.records()]
        found = [action for actions in kept for action in actions]
        await log.close()
        assert found == [f"tool:read:{number}" for number in range(count)]


def test_a_blank_action_is_no_question(router: RouterProcess) -> None:
    for action in ("", " ", "\n", "\t \r"):
        assert router.evaluate(action=action).status == 400

"""The reference's defects, attacked here by register row (router.md 10.3)."""

from typing import Any

import orjson
import pytest
from kars_router_testkit import FakeProvider, Reply, RouterProcess, bundle, completion, sse_completion
from kars_router_testkit.fixtures import StartRouter
from kars_router_testkit.policies import capability

BOTH = pytest.mark.parametrize("streamed", [False, True], ids=["buffered", "streamed"])
HIGH = {"content_filter_results": {"hate": {"severity": "high", "filtered": False}}}
SECRET = "ghp_abcdefghijklmnopqrstuvwxyz123456"


def test_router_register_1_an_unwritable_audit_directory_stops_the_start(
    provider: FakeProvider, tmp_path: Any
) -> None:
    router = RouterProcess(directory=tmp_path, providers=[("main", provider.base_url)])
    router.prepare()
    (router.state / "audit").write_text("a file where the directory should be")
    router.start(wait=False)
    assert router.process is not None
    assert router.process.wait(20) == 1
    assert b"audit_unavailable" in router.log_file.read_bytes()


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"1"])
def test_router_register_2_a_body_that_is_no_object_is_a_400(router: RouterProcess, body: bytes) -> None:
    answer = router.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    assert (answer.status, answer.code) == (400, "not_an_object")


@BOTH
def test_router_register_2_a_multibyte_character_at_any_cut_harms_nothing(
    router: RouterProcess, provider: FakeProvider, streamed: bool
) -> None:
    text = "é€😀" * 200
    for size in range(195, 206):
        provider.reply(sse_completion(list(text[:size])) if streamed else completion(text[:size]))
        answer = router.chat(stream=streamed)
        got = answer.text if streamed else answer.json["choices"][0]["message"]["content"]
        assert got == text[:size]


def test_router_register_4_and_9_no_admin_route_exists_on_the_agents_door(router: RouterProcess) -> None:
    for method, path in (
        *(("PUT", "/admin/model"), ("GET", "/agt/trust"), ("POST", "/agt/trust"), ("GET", "/agt/audit")),
        *(("PUT", "/agt/rate-limit"), ("GET", "/internal/policy-status"), ("POST", "/agt/relay/send")),
    ):
        answer = router.request(method, path, b"{}", {"authorization": "Bearer admin"})
        assert (answer.status, answer.code) == (404, "route_not_found")
    assert {record["path"] for record in router.records("call.denied")} >= {"/admin/model", "/agt/trust"}


def test_router_register_11_caller_header_cannot_pick_the_budget(
    start_router: StartRouter, provider: FakeProvider
) -> None:
    router = start_router(policy=bundle(budget={"dailyTokens": "120"}))
    provider.reply(completion(usage=(50, 50)))
    assert router.chat(max_tokens=90).status == 200
    for name in ("x-kars-sandbox", "x-kars-agent", "x-forwarded-for", "x-real-ip", "forwarded"):
        answer = router.chat(max_tokens=90, headers={name: "another-sandbox"}, user="another-sandbox")
        assert (answer.status, answer.code) == (429, "budget_exceeded")
    assert {record["sandbox"] for record in router.records()} == {"team/agent"}
    assert "another-sandbox" not in router.request("GET", "/metrics").body.decode()


def test_router_register_12_a_prompt_of_ten_megabytes_is_served(router: RouterProcess) -> None:
    messages = [{"role": "user", "content": "x" * 10_000_000}]
    assert router.chat(messages=messages).status == 200


@BOTH
def test_router_register_13_a_model_outside_policy_is_denied(
    router: RouterProcess, provider: FakeProvider, streamed: bool
) -> None:
    for model in ("gpt-other", "gpt-test ", "GPT-TEST", "main/gpt-other", "other/gpt-test", "*"):
        answer = router.chat(model=model, stream=streamed)
        assert (answer.status, answer.code) == (403, "policy_denied")
    assert not provider.received


@BOTH
def test_router_register_13_falling_back_rewrites_the_model(
    start_router: StartRouter, provider: FakeProvider, streamed: bool
) -> None:
    router = start_router(policy=bundle(models=[("main", "first"), ("main", "second"), ("absent", "third")]))
    provider.reply(Reply(status=503))
    answer = router.chat(model="first", stream=streamed)
    assert answer.status == 200
    assert [request.json["model"] for request in provider.received] == ["first", "second"]
    attempts = router.records("call.settled")[-1]["attempts"]
    assert [(attempt["model"], attempt["result"]) for attempt in attempts] == [
        ("first", "503"),
        ("second", "ok"),
    ]


def test_router_register_14_no_header_of_the_agent_reaches_the_provider(
    router: RouterProcess, provider: FakeProvider
) -> None:
    agent = {
        "authorization": "Bearer agent-chosen",
        "api-key": "agent-chosen",
        "x-api-key": "agent-chosen",
        "cookie": "agent-chosen=1",
        "x-kars-sandbox": "agent-chosen",
        "openai-organization": "agent-chosen",
        "x-stainless-lang": "agent-chosen",
        "user-agent": "agent-chosen",
        "te": "trailers",
        "x-kars-trace-id": "agent-chosen",
    }
    assert router.chat(headers=agent).headers["x-kars-trace-id"] == "agent-chosen"
    (request,) = provider.received
    names = {name.lower() for name, _ in request.headers}
    assert names == {"content-type", "accept", "authorization", "user-agent", "host", "content-length"}
    assert "agent-chosen" not in str(request.headers)
    assert request.header("authorization") == f"Bearer {router.key}"


def test_router_register_14_a_field_that_chooses_another_endpoint_or_model_is_refused(
    router: RouterProcess, provider: FakeProvider
) -> None:
    for name in ("models", "route", "provider", "api_base", "api_key", "fallbacks"):
        fields: dict[str, Any] = {name: "x"}
        assert router.chat(**fields).code == "unsupported_parameter"
    assert not provider.received


def test_router_register_15_a_short_retry_after_is_honoured_once_and_a_long_one_is_told(
    router: RouterProcess, provider: FakeProvider
) -> None:
    provider.reply(Reply(status=429, headers=[("retry-after", "0.05")]))
    assert router.chat().status == 200
    assert len(provider.received) == 2
    provider.reply(Reply(status=429, headers=[("retry-after", "77"), ("x-ratelimit-remaining-tokens", "9")]))
    answer = router.chat()
    assert (answer.status, answer.headers["retry-after"]) == (429, "77")
    assert answer.headers["x-ratelimit-remaining-tokens"] == "9"
    assert len(provider.received) == 3


def test_router_register_15_a_call_that_may_have_been_received_is_not_sent_again(
    router: RouterProcess, provider: FakeProvider
) -> None:
    provider.reply(Reply(reset=True))
    assert router.chat().status == 502
    assert len(provider.received) == 1


@BOTH
def test_router_register_17_secrets_are_taken_out_of_every_answer(
    router: RouterProcess, provider: FakeProvider, streamed: bool
) -> None:
    for secret in (SECRET, router.key):
        text = f"the key is {secret}, keep it"
        pieces = [text[position : position + 3] for position in range(0, len(text), 3)]
        provider.reply(sse_completion(pieces) if streamed else completion(text))
        answer = router.chat(stream=streamed)
        got = answer.text if streamed else answer.json["choices"][0]["message"]["content"]
        assert got.startswith("the key is [REDACTED_")
        assert got.endswith("], keep it")
        assert secret[-10:] not in answer.body.decode()
    assert router.records("call.settled")[-1]["redactions"]


@BOTH
def test_router_register_17_the_floor_holds_on_every_annotated_event(
    start_router: StartRouter, provider: FakeProvider, streamed: bool
) -> None:
    router = start_router(policy=bundle(safety={"hate": "SEVERITY_MEDIUM"}))
    provider.reply(sse_completion(["x"], choice_extra=HIGH) if streamed else completion(choice_extra=HIGH))
    answer = router.chat(stream=streamed)
    assert b"inference_policy_content_safety_exceeded" in answer.body
    assert not answer.body.count(b'"content":"x"')


def test_router_register_18_every_choice_and_every_tool_argument_is_looked_at(
    start_router: StartRouter, provider: FakeProvider
) -> None:
    router = start_router(
        policy=bundle(safety={"hate": "SEVERITY_LOW"}, rules=[capability("no", deny=["tool:send:*"])])
    )
    provider.reply(completion(choices=["fine", f"second {SECRET}"]))
    assert SECRET not in router.chat(n=2).body.decode()
    two: dict[str, Any] = orjson.loads(completion(choices=["fine", "bad"]).parts[0])
    two["choices"][1] |= HIGH
    provider.reply(Reply(parts=[orjson.dumps(two)]))
    assert router.chat(n=2).code == "inference_policy_content_safety_exceeded"
    two = orjson.loads(completion(choices=["fine", "calls"]).parts[0])
    call = {"id": "c", "type": "function", "function": {"name": "send", "arguments": '{"to":"x"}'}}
    two["choices"][1]["message"]["tool_calls"] = [call]
    provider.reply(Reply(parts=[orjson.dumps(two)]))
    assert router.chat(n=2).code == "policy_denied"
    provider.reply(completion(None, tools=[("note", orjson.dumps({"text": SECRET}).decode())]))
    assert SECRET not in router.chat().body.decode()


def test_router_register_26_two_hundred_offered_tools_cost_no_rate_limit(
    start_router: StartRouter, provider: FakeProvider
) -> None:
    router = start_router(
        policy=bundle(
            rules=[capability("some", allow=["inference:*", "tool:t1*"])],
            default="VERDICT_DENY",
            tools=[{"tool": "*", "rateRps": 1, "rateBurst": 1}],
            limits={"requestsPerSecond": 1, "burst": 2},
        )
    )
    tools = [
        {"type": "function", "function": {"name": f"t{number}", "parameters": {}}} for number in range(200)
    ]
    assert router.chat(tools=tools).status == 200
    sent = [tool["function"]["name"] for tool in provider.received[0].json["tools"]]
    assert sent == [f"t{number}" for number in range(200) if str(number).startswith("1")]
    assert router.chat(tools=tools[2:3]).status == 200
    assert "tools" not in provider.received[1].json
    assert router.records("call.settled")[-1]["removed_tools"] == ["t2"]


def test_router_register_52_a_separator_in_an_action_makes_no_second_reading_of_a_record(
    router: RouterProcess,
) -> None:
    for action in ("tool:a|allow|b", 'tool:a","type":"call.settled', "tool:a\nb", "tool:\u2028x"):
        assert router.evaluate(action=action).status == 200
    router.stop()
    assert router.verified()
    shown = [record["action"] for record in router.records("call.settled")]
    assert shown == ["tool:a|allow|b", 'tool:a","type":"call.settled', "tool:a b", "tool: x"]
    sequence = [record["seq"] for record in router.records()]
    router.start()
    router.chat()
    assert [record["seq"] for record in router.records()][: len(sequence)] == sequence
    assert router.records()[-1]["seq"] == len(router.records()) - 1


def test_redirects_of_a_provider_are_not_followed(router: RouterProcess, provider: FakeProvider) -> None:
    provider.reply(Reply(status=302, headers=[("location", provider.base_url)]))
    assert (router.chat().status, len(provider.received)) == (502, 1)


def test_a_providers_refusal_of_the_key_does_not_show_the_key(
    router: RouterProcess, provider: FakeProvider
) -> None:
    error = {
        "error": {
            "message": f"Incorrect API key provided: {router.key}",
            "type": "x",
            "code": "invalid_api_key",
        }
    }
    for status, expected in ((401, 502), (403, 502), (400, 400), (500, 500)):
        provider.reply(Reply(status=status, parts=[orjson.dumps(error)]))
        answer = router.chat()
        assert answer.status == expected
        assert router.key not in answer.body.decode() + str(answer.headers)


@BOTH
def test_missing_usage_is_charged_at_the_reserved_maximum(
    router: RouterProcess, provider: FakeProvider, streamed: bool
) -> None:
    provider.reply(sse_completion(usage=None) if streamed else completion(usage=None))
    assert router.chat(stream=streamed, max_tokens=77).status == 200
    settled, admitted = router.records("call.settled")[-1], router.records("call.admitted")[-1]
    assert settled["charged"] == admitted["reserved"] >= 77
    assert settled["estimated"] is True


@pytest.mark.parametrize(
    "reply",
    [
        Reply(parts=[b"not json"]),
        Reply(parts=[b"[]"]),
        Reply(parts=[b'{"choices":{}}']),
        Reply(parts=[b'{"choices":[1]}']),
        Reply(parts=[b'{"choices":[{"index":-1}]}']),
        Reply(parts=[b'{"choices":[{"index":0,"message":{"content":7},"finish_reason":"stop"}]}']),
        Reply(parts=[b"<html>"], content_type="text/html"),
        Reply(parts=[b"{}"], content_type="text/event-stream"),
        Reply(parts=[b"\xff\xfe"]),
    ],
)
def test_an_answer_that_is_none_is_a_502_and_harms_nothing(
    router: RouterProcess, provider: FakeProvider, reply: Reply
) -> None:
    provider.reply(reply)
    answer = router.chat()
    assert (answer.status, answer.code) == (502, "bad_gateway")
    assert router.chat().status == 200


@pytest.mark.parametrize(
    "reply",
    [
        Reply(parts=[b"data: nonsense\n\n"], content_type="text/event-stream"),
        Reply(parts=[b"data: [1]\n\n"], content_type="text/event-stream"),
        Reply(parts=[b'data: {"error":{"message":"x"}}\n\n'], content_type="text/event-stream"),
        sse_completion(["x"], finish=False, usage=None, done=False),
        sse_completion([], tools=[("send", '{"a":1}')], finish=False, usage=None, done=False),
    ],
)
def test_a_stream_that_breaks_ends_in_an_error_and_never_looks_complete(
    router: RouterProcess, provider: FakeProvider, reply: Reply
) -> None:
    provider.reply(reply)
    answer = router.chat(stream=True)
    assert b'"bad_gateway"' in answer.body
    assert b'"finish_reason":"stop"' not in answer.body
    assert b"tool_calls" not in answer.body
    assert router.records("call.settled")[-1]["charged"] == router.records("call.admitted")[-1]["reserved"]

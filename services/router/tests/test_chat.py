"""Chat completions through a real router process: buffered, streamed, and with the official client."""

from typing import Any

import openai
import orjson
import pytest
from kars_router_testkit import FakeProvider, RouterProcess, bundle, completion, sse_completion
from kars_router_testkit.fixtures import StartRouter


def test_a_buffered_answer_comes_back_with_its_usage_and_decision(
    router: RouterProcess, provider: FakeProvider
) -> None:
    provider.reply(completion("hello"))
    answer = router.chat()
    assert answer.status == 200
    assert answer.json["choices"][0]["message"] == {"role": "assistant", "content": "hello"}
    assert answer.json["usage"]["total_tokens"] == 15
    assert answer.headers["x-kars-decision"] == "Allowed"
    assert answer.headers["x-kars-trace-id"]


def test_both_records_are_on_disk_before_the_answer_is_here(router: RouterProcess) -> None:
    assert router.chat().status == 200
    (admitted,) = router.records("call.admitted")
    (settled,) = router.records("call.settled")
    assert admitted["reserved"] > settled["charged"] == 15
    assert (settled["call"], settled["ending"]) == (admitted["call"], "completed")
    assert (settled["provider"], settled["key"][:7]) == ("main", "sha256:")


def test_a_streamed_answer_keeps_its_text_and_hides_the_usage_nobody_asked_for(
    router: RouterProcess, provider: FakeProvider
) -> None:
    provider.reply(sse_completion(["hel", "lo"]))
    answer = router.chat(stream=True)
    assert (answer.status, answer.text) == (200, "hello")
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert not any("usage" in event for event in answer.events)
    assert provider.received[0].json["stream_options"] == {"include_usage": True}
    assert router.records("call.settled")[0]["charged"] == 15


def test_the_usage_event_is_passed_on_when_asked_for(router: RouterProcess, provider: FakeProvider) -> None:
    provider.reply(sse_completion(usage=(7, 3)))
    events = router.chat(stream=True, stream_options={"include_usage": True}).events
    assert events[-1]["usage"]["total_tokens"] == 10


def test_text_flows_while_the_provider_is_still_thinking(
    router: RouterProcess, provider: FakeProvider
) -> None:
    import threading
    from http.client import HTTPConnection

    gate = threading.Event()
    reply = sse_completion(["first"])
    reply.gate = gate
    provider.reply(reply)
    connection = HTTPConnection("127.0.0.1", router.port, timeout=10)
    body = {"model": "gpt-test", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    connection.request(
        "POST", "/v1/chat/completions", orjson.dumps(body), {"content-type": "application/json"}
    )
    response = connection.getresponse()
    seen = b""
    while b"first" not in seen:
        seen += response.readline()
    assert not router.records("call.settled")
    gate.set()
    rest = response.read()
    assert rest.endswith(b"data: [DONE]\n\n")
    connection.close()


def test_the_default_model_is_inserted_when_the_caller_names_none(
    router: RouterProcess, provider: FakeProvider
) -> None:
    assert router.chat(model=None).status == 200
    assert provider.received[0].json["model"] == "gpt-test"


def test_models_lists_exactly_what_policy_allows(start_router: StartRouter) -> None:
    router = start_router(policy=bundle(models=[("main", "a"), ("other", "b")]))
    listed = router.request("GET", "/v1/models").json
    assert [(model["id"], model["owned_by"]) for model in listed["data"]] == [("a", "main"), ("b", "other")]


def test_readiness_needs_a_policy_in_force(start_router: StartRouter) -> None:
    router = start_router(policy=None)
    assert router.request("GET", "/healthz").status == 200
    answer = router.request("GET", "/readyz")
    assert (answer.status, answer.body) == (503, b"not ready: no policy is in force")
    refused = router.chat()
    assert (refused.status, refused.code) == (403, "no_policy_in_force")


def test_a_kept_policy_that_was_tampered_with_denies_everything(start_router: StartRouter) -> None:
    router = start_router()
    assert router.request("GET", "/readyz").status == 200
    router.stop()
    kept = next((router.state / "policy").glob("*.pb"))
    kept.write_bytes(kept.read_bytes().replace(b"gpt-test", b"gpt-evil"))
    router.start()
    assert router.chat(model="gpt-evil").code == "no_policy_in_force"


def test_metrics_name_no_caller_chosen_text(router: RouterProcess) -> None:
    router.chat()
    router.chat(model="made-up-by-the-agent")
    router.evaluate(action="tool:made-up-by-the-agent:x")
    router.request("GET", "/made-up-by-the-agent")
    text = router.request("GET", "/metrics").body.decode()
    assert 'kars_inference_requests_total{model="gpt-test",sandbox="team/agent",status="ok"} 1.0' in text
    assert "made-up-by-the-agent" not in text


class TestOfficialClient:
    def client(self, router: RouterProcess) -> openai.OpenAI:
        return openai.OpenAI(base_url=router.base_url, api_key="router-managed", max_retries=0)

    def ask(self, router: RouterProcess, **options: Any) -> Any:
        with self.client(router) as client:
            messages: Any = [{"role": "user", "content": "hi"}]
            return client.chat.completions.create(model="gpt-test", messages=messages, **options)

    def test_buffered(self, router: RouterProcess) -> None:
        assert self.ask(router).choices[0].message.content == "ok"

    def test_streamed_with_usage(self, router: RouterProcess) -> None:
        with self.client(router) as client:
            stream = client.chat.completions.create(
                model="gpt-test",
                messages=[{"role": "user", "content": "hi"}],
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = list(stream)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "ok"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.total_tokens == 15

    @pytest.mark.parametrize("streamed", [False, True])
    def test_tools(self, router: RouterProcess, provider: FakeProvider, streamed: bool) -> None:
        call = ("read_file", '{"path":"notes.md"}')
        provider.reply(sse_completion([], tools=[call]) if streamed else completion(None, tools=[call]))
        tools = [{"type": "function", "function": {"name": "read_file", "parameters": {"type": "object"}}}]
        with self.client(router) as client:
            if streamed:
                with client.chat.completions.stream(
                    model="gpt-test",
                    messages=[{"role": "user", "content": "hi"}],
                    tools=tools,  # type: ignore[arg-type]  # plain JSON
                ) as stream:
                    message = stream.get_final_completion().choices[0].message
            else:
                message = self.ask(router, tools=tools).choices[0].message
        asked = next(iter(message.tool_calls or []))
        assert asked.type == "function"
        assert (asked.function.name, asked.function.arguments) == call

    def test_models(self, router: RouterProcess) -> None:
        with self.client(router) as client:
            assert [model.id for model in client.models.list()] == ["gpt-test"]

    @pytest.mark.parametrize("streamed", [False, True])
    def test_a_denial_is_the_clients_own_error_and_is_not_retried(
        self, router: RouterProcess, provider: FakeProvider, streamed: bool
    ) -> None:
        with (
            openai.OpenAI(base_url=router.base_url, api_key="x", max_retries=3) as client,
            pytest.raises(openai.PermissionDeniedError) as raised,
        ):
            client.chat.completions.create(
                model="other",
                messages=[{"role": "user", "content": "hi"}],
                stream=streamed,
            )
        assert raised.value.code == "policy_denied"
        assert len(router.records("call.denied")) == 1
        assert not provider.received

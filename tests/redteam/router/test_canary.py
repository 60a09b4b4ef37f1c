"""The provider's key is searched for everywhere that is not the request to the provider."""

from pathlib import Path

import orjson
from kars_router_testkit import FakeProvider, Reply, completion, sse_completion
from kars_router_testkit.fixtures import StartRouter


def test_the_providers_key_is_in_no_log_record_error_metric_or_answer(
    start_router: StartRouter, provider: FakeProvider
) -> None:
    router = start_router(env={"LOG_LEVEL": "DEBUG"})
    key = router.key
    leak = {"error": {"message": f"bad key {key}", "type": key, "code": key, "innererror": {"key": key}}}
    provider.reply(
        Reply(
            status=401,
            parts=[orjson.dumps(leak)],
            headers=[("x-ratelimit-limit-tokens", key), ("x-leak", key)],
        ),
        Reply(status=500, parts=[orjson.dumps(leak)]),
        Reply(status=400, parts=[f"plain {key}".encode()]),
        Reply(status=302, headers=[("location", f"http://x/?k={key}")]),
        Reply(parts=[f"not json {key}".encode()]),
        Reply(reset=True),
        completion(
            f"it is {key}",
            tools=[("note", orjson.dumps({"k": key}).decode())],
            extra={"id": "x", "leak": key},
        ),
        sse_completion(list(f"it is {key} ok"), tools=[("note", orjson.dumps({"k": key}).decode())]),
        Reply(parts=[b"data: " + orjson.dumps(leak) + b"\n\n"], content_type="text/event-stream"),
    )
    seen = b""
    for number in range(9):
        answer = router.chat(stream=number >= 7, headers={"authorization": f"Bearer {key}"})
        seen += answer.body + str(answer.headers).encode()
    # An agent that learned the key elsewhere must not get it into the records either.
    for action in (f"tool:x:{key}", f"shell:curl -H 'Authorization: Bearer {key}'"):
        seen += router.evaluate(action=action, context={"k": key}).body
    seen += router.request("GET", f"/{key}").body
    seen += router.chat(model=key).body
    seen += router.request("GET", "/metrics").body
    assert len(provider.received) == 9
    assert all(request.header("authorization") == f"Bearer {key}" for request in provider.received)
    router.stop()
    assert key.encode() not in seen
    for path in [router.log_file, *Path(router.state).rglob("*")]:
        if path.is_file():
            assert key.encode() not in path.read_bytes(), path.name
    assert router.verified()


def test_a_key_that_others_may_read_is_not_used(start_router: StartRouter, provider: FakeProvider) -> None:
    router = start_router()
    router.stop()
    router.write_key("sk-another-key-0123456789", mode=0o644)
    router.start()
    assert router.chat().code == "provider_not_configured"
    assert not provider.received
    assert router.records("providers.refused")


def test_a_changed_key_is_used_without_a_restart_and_the_old_one_stays_secret(
    start_router: StartRouter, provider: FakeProvider
) -> None:
    import time

    router = start_router()
    assert router.chat().status == 200
    fresh = "sk-fresh-key-9876543210"
    router.write_key(fresh)
    deadline = time.monotonic() + 5
    while provider.received[-1].header("authorization") != f"Bearer {fresh}":
        assert time.monotonic() < deadline
        assert router.chat().status == 200
    provider.reply(completion(f"{router.key} and {fresh}"))
    text = router.chat().json["choices"][0]["message"]["content"]
    assert text == "[REDACTED_ROUTER_CREDENTIAL] and [REDACTED_ROUTER_CREDENTIAL]"
    assert len(router.records("credential.loaded")) == 2

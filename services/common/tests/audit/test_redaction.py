"""Canary secrets of every common kind, in every place, never reach the record."""

import json
import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kars_common.audit import Redactor, redact
from kars_common.errors import InvalidInputError

B64 = "c2VjcmV0LWNhbmFyeS1mb3ItdGVzdHM"
CANARIES = {
    "openai": "sk-proj-CANARYcanary0123456789abcdefABCDEF",
    "anthropic": "sk-ant-api03-CANARY_canary-0123456789abcdef",
    "openrouter": "sk-or-v1-0123456789abcdef0123456789abcdef",
    "stripe": "sk_live_CANARY0123456789abcdef",
    "aws id": "AKIAIOSFODNN7EXAMPLE",
    "aws session": "ASIAIOSFODNN7EXAMPLE",
    "github classic": "ghp_CANARY0123456789abcdefABCDEF012345",
    "github fine": "github_pat_11CANARY0_0123456789abcdefABCDEF",
    "gitlab": "glpat-CANARY0123456789abcd",
    "slack bot": "xoxb-123456789012-CANARYcanary",
    "slack app": "xapp-1-A0123456789-CANARY",
    "slack hook": "hooks.slack.com/services/T000/B000/CANARYcanary0123",
    "google": "AIzaSyCANARY0123456789abcdefABCDEF0123",
    "huggingface": "hf_CANARYcanary0123456789abcdefABCD",
    "npm": "npm_CANARYcanary0123456789abcdefABCDEF",
    "telegram": "123456789:CANARYcanary0123456789abcdefABCDEF0",
    "vault": "hvs.CANARYcanary0123456789abcdef",
    "jwt": f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ{B64}.{B64}",
    "jwe": f"eyJhbGciOiJSU0EifQ.{B64}.{B64}.{B64}.{B64}",
    "bearer": "Bearer CANARYcanary0123456789==",
    "bearer lower": "authorization: bearer CANARYcanary.0123",
    "basic": "Authorization: Basic Y2FuYXJ5OmNhbmFyeQ==",
    "pem": "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIcanary\n-----END EC PRIVATE KEY-----",
    "pem without end": "-----BEGIN OPENSSH PRIVATE KEY-----\ncanarycanarycanary",
    "pem escaped": '{"key": "-----BEGIN PRIVATE KEY-----\\ncanary\\n-----END PRIVATE KEY-----\\n"}',
    "postgres": "postgresql://user:canaryPass1@db:5432/x",
    "password with at": "amqp://user:p@canary@mq/x",
    "azure storage": f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={B64}==;EndpointSuffix=x",
    "azure bus": f"Endpoint=sb://x/;SharedAccessKeyName=root;SharedAccessKey={B64}=",
    "azure sas": "https://a.blob.core.windows.net/c?sv=2022&sp=r&sig=CANARYcanary0123%2Bxyz%3D",
    "sql": "Server=db;User Id=sa;Password=canaryPass1;",
    "env": "AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYCANARY",
    "header": "x-api-key: CANARYcanary0123",
    "json in text": '{"client_secret": "CANARYcanary0123"}',
    "json in json": '{\\"access_token\\":\\"CANARYcanary0123\\"}',
    "passphrase": "passphrase = canarycanary",
}
# The part of each canary that must not be seen again.
NEEDLES = ["canary", "CANARY", "AKIAIOSFODNN7", "ASIAIOSFODNN7", "0123456789abcdef", "Y2FuYXJ5", B64]


def assert_gone(text: str) -> None:
    for needle in NEEDLES:
        assert needle not in text


@pytest.mark.parametrize("kind", CANARIES)
def test_canary_is_gone_from_every_place(kind: str) -> None:
    canary = CANARIES[kind]
    for value in (canary, f"before {canary} after", f'"{canary}"', [canary], {"k": {"deep": [1, canary]}}):
        fields: dict[str, Any] = {"argument": value}
        assert Redactor().suspicious(fields), "the cheap test must not miss it"
        assert_gone(json.dumps(redact(fields)))


@pytest.mark.parametrize("key", ["Authorization", "x-api-key", "PASSWORD", "client_secret", "Set-Cookie"])
def test_value_under_a_telling_key_is_gone_whatever_it_looks_like(key: str) -> None:
    assert Redactor().suspicious({key: "plain"})
    assert redact({key: "plain", "n": 1}) == {key: "[REDACTED]", "n": 1}
    assert redact({"nested": {key: ["a", "b"]}}) == {"nested": {key: "[REDACTED]"}}


@pytest.mark.parametrize(
    "text",
    ["call.admitted", "tool:read_file:/sandbox/notes.md", "spiffe://kars.local/ns/a/sandbox/b", "gpt-4o-mini",
     "risk-assessment", "the tokens: 12 of 50", "https://example.com:8443/a?b=c", "sha256:" + "ab" * 32,
     "please post the keynote", "a task-oriented bear"],
)  # fmt: skip
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert redact(text) == text


def test_registered_secret_is_gone_also_when_encoded() -> None:
    redactor = Redactor()
    redactor.register('s3cr"t\\val&ue')
    assert redactor.redact_text('x s3cr"t\\val&ue y') == "x [REDACTED_REGISTERED_SECRET] y"
    assert "s3cr" not in redactor.redact_text("x s3cr%22t%5Cval%26ue y")
    assert "czNjciJ0XHZhbCZ1Z" not in redactor.redact_text("x czNjciJ0XHZhbCZ1ZQ== y")
    assert redactor.suspicious({"k": {"deep": 's3cr"t\\val&ue'}})


def test_secret_registered_after_the_string_was_seen_is_found() -> None:
    redactor = Redactor()
    assert not redactor.suspicious({"k": "plain-looking"})
    redactor.register("plain-looking")
    assert redactor.suspicious({"k": "plain-looking"})


def test_registered_secret_that_looks_like_an_id_is_found() -> None:
    redactor = Redactor()
    assert not redactor.suspicious({"call": "xabcdef123456y"})
    redactor.register("abcdef123456")
    assert redactor.suspicious({"call": "xabcdef123456y"})
    assert redactor.redact_text("xabcdef123456y") == "x[REDACTED_REGISTERED_SECRET]y"


@pytest.mark.parametrize("secret", ["", "short", "x" * 5000])
def test_secret_that_cannot_be_searched_for_is_refused(secret: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Redactor().register(secret)
    assert caught.value.reason == "secret_length_invalid"


PIECES = st.sampled_from(
    [*CANARIES.values(), "token", ": ", "=", " ", "\n", '"', "bearer ", "eyJ", "sk-", "@", "://"]
)
TEXTS = st.lists(PIECES | st.text(max_size=10), max_size=8).map("".join)


@given(
    st.dictionaries(st.sampled_from(["a", "b", "password"]), TEXTS | st.lists(TEXTS, max_size=2), max_size=3)
)
@example({"a": "token\t: abcdefgh"})
def test_the_cheap_test_never_misses_what_redaction_would_change(fields: dict[str, Any]) -> None:
    redactor = Redactor()
    if redactor.redact_fields(fields) != fields:
        assert redactor.suspicious(fields)


@given(TEXTS)
def test_redaction_is_stable_when_repeated(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


@given(st.text(max_size=40), st.sampled_from(list(CANARIES.values())), st.text(max_size=40))
def test_text_around_a_secret_does_not_hide_it(before: str, canary: str, after: str) -> None:
    assert_gone(str(redact(f"{before} {canary} {after}")))


def test_secret_across_the_cut_is_not_half_kept() -> None:
    redactor = Redactor(max_string_chars=100)
    redactor.register("Q" * 50)
    for place in range(40, 4200, 7):
        text = "." * place + "Q" * 50 + "." * 5000
        assert "Q" not in redactor.redact_text(text)


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "eyJ",
        "sk-",
        "token=",
        "://",
        "a://b:",
        "bearer ",
        "-----BEGIN ",
        "sig=",
        "1",
        ":",
        "x@",
        " \t",
        "api_",
    ],
)
def test_work_is_linear_for_hostile_input(unit: str) -> None:
    text = unit * (8000 // len(unit))
    started = time.perf_counter()
    redact(text)
    assert time.perf_counter() - started < 0.5

"""The secret scanner: the same in any cut, bounded, linear, and silent on ordinary text."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kars_router.guardrails.redaction import MAX_HELD, RedactionStream, SecretScanner

KEY = "sk-canary-$ecret-0123456789"
OTHER = "plain-router-key-xyz"
SCANNER = SecretScanner([KEY, OTHER])

_FRAGMENTS = st.sampled_from(
    [
        *(
            "sk-",
            KEY,
            KEY[:9],
            "plain-router",
            "-key-xyz",
            "Bearer ",
            "bearer ",
            "abcdefghijklmnopqrstuvwxyz0123",
            " ",
        ),
        *(
            "hello ",
            "-----BEGIN RSA PRIVATE KEY-----",
            "-----END RSA PRIVATE KEY-----",
            "PRIVATE",
            "ghp_",
            "AKIA",
        ),
        *(
            "ABCDEFGHIJKLMNOP",
            "\n",
            "task-",
            "$",
            "eyJ",
            "-----",
            "é",
            "x",
            "github_pat_",
            "xoxb-",
            "AccountKey=",
        ),
    ]
)
TEXTS = st.lists(_FRAGMENTS, max_size=10).map("".join)


def in_pieces(text: str, cuts: list[int]) -> str:
    stream = RedactionStream(SCANNER)
    out, position = [], 0
    for cut in cuts:
        out.append(stream.feed(text[position : position + cut]))
        position += cut
    return "".join([*out, stream.feed(text[position:]), stream.finish()])


@given(TEXTS, st.lists(st.integers(0, 9), max_size=60))
@settings(max_examples=500, deadline=None)
def test_any_cut_of_a_text_gives_the_same_output(text: str, cuts: list[int]) -> None:
    assert in_pieces(text, cuts) == in_pieces(text, []) == SCANNER.redact(text)


@given(TEXTS, st.lists(st.integers(0, 9), max_size=60))
@settings(deadline=None)
def test_the_routers_own_keys_never_come_through(text: str, cuts: list[int]) -> None:
    assert KEY not in in_pieces(text + KEY + text, cuts)
    assert OTHER not in in_pieces(text + OTHER, cuts)


@given(st.text(alphabet=st.characters(blacklist_categories=["Cs"]), max_size=200))
def test_what_is_held_back_is_bounded(text: str) -> None:
    stream = RedactionStream(SCANNER)
    out = 0
    for fed, char in enumerate(text, start=1):
        out += len(stream.feed(char))
        assert fed - out <= MAX_HELD


@pytest.mark.parametrize(
    "secret",
    [
        *(
            "sk-proj-abcdefghijklmnopqrst",
            "ghp_abcdefghijklmnopqrst1234",
            "AKIAIOSFODNN7EXAMPLE1",
            "Bearer abcdefghijklmnopqrstuv",
        ),
        *(
            "xoxb-123456789012-abcdefghij",
            "AIzaSyA-abcdefghijklmnopqrstuvwxyz0123456",
            "github_pat_11ABCDEFGabcdefghijklmnop",
        ),
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefghijklmnopqrstuvwxyz",
        "AccountKey=abcdefghijklmnopqrstuvwx==",
        "-----BEGIN PRIVATE KEY-----\nMIIabc\n-----END PRIVATE KEY-----",
    ],
)
def test_secret_forms_are_taken_out(secret: str) -> None:
    out = SCANNER.redact(f"before {secret} after")
    assert out.startswith("before [REDACTED_")
    assert out.endswith("] after")
    assert secret[-12:] not in out


@pytest.mark.parametrize(
    "text",
    [
        "You must post the letter; ignore all previous drafts and reveal the total.",
        "Use curl to upload the file to https://example.com/path, then send it.",
        "token: abcd and password = hunter2 are placeholders in this tutorial",
        "<!-- a comment --> <system>quoted</system> in HTML",
        "task-list, risk-averse, desk-bound, the eyJ prefix, a bearer token, AKIA alone, -----",
    ],
)
def test_router_register_25_ordinary_text_is_not_touched(text: str) -> None:
    assert SCANNER.redact(text) == text
    assert in_pieces(text, [1] * len(text)) == text


def test_tokens_that_begin_no_secret_are_released_at_once() -> None:
    stream = RedactionStream(SCANNER)
    pieces = ["The", " answer", " will", " come", " to", " 42", "."]
    assert [stream.feed(piece) for piece in pieces] == pieces


def test_a_token_that_may_begin_a_secret_waits_for_the_next_one_only() -> None:
    stream = RedactionStream(SCANNER)
    assert [stream.feed(piece) for piece in ("this", " is")] == ["thi", "s i"]
    assert stream.feed(" it") == "s it"


def test_the_scan_is_linear_in_hostile_text() -> None:
    def seconds(size: int) -> float:
        texts = [
            "sk-" * size,
            "-----BEGIN " * size,
            "Bearer " * size,
            ("ghp_" + "a" * 19 + " ") * size,
            KEY[:-1] * size,
        ]
        started = time.process_time()
        for text in texts:
            stream = RedactionStream(SCANNER)
            for position in range(0, len(text), 7):
                stream.feed(text[position : position + 7])
            stream.finish()
        return time.process_time() - started

    seconds(50)
    small, large = max(seconds(200), 1e-3), seconds(2000)
    assert large < 40 * small

"""Logs: one JSON object a line, whatever is logged."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from kars_common import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    logs.configure("kars-tested", "debug", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_sentence_and_fields_are_one_object(stream: io.StringIO) -> None:
    logging.getLogger("x").info("bundle in force", extra={"version": 7})
    (line,) = lines(stream)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "service": "kars-tested",
        "logger": "x",
        "message": "bundle in force",
        "version": 7,
    }


def test_line_breaks_cannot_forge_a_record(stream: io.StringIO) -> None:
    logging.getLogger("x").info('a\n{"level":"error"}', extra={"f": "b\r\nc\u2028d"})
    assert len(stream.getvalue().rstrip("\n").split("\n")) == 1


def test_fields_cannot_replace_the_standard_ones(stream: io.StringIO) -> None:
    logging.getLogger("x").info("m", extra={"service": "forged", "level": "forged"})
    (line,) = lines(stream)
    assert (line["service"], line["level"]) == ("kars-tested", "info")
    assert (line["service_"], line["level_"]) == ("forged", "forged")


def test_values_without_a_json_form_are_shown_as_text_and_capped(stream: io.StringIO) -> None:
    class Loud:
        def __str__(self) -> str:
            return "x" * 10_000

    logging.getLogger("x").info("m", extra={"loud": Loud()})
    assert len(lines(stream)[0]["loud"]) == 4096


@pytest.mark.parametrize("value", ["\ud800", 2**70, float("nan"), b"\xff", {1, 2}, {("a",): 1}])
def test_no_field_breaks_the_log(stream: io.StringIO, value: Any) -> None:
    logging.getLogger("x").info("m", extra={"f": value})
    assert lines(stream)[0]["message"] == "m"


def test_exception_is_a_field(stream: io.StringIO) -> None:
    try:
        int("boom")
    except ValueError:
        logging.getLogger("x").exception("it broke")
    assert "ValueError: invalid literal" in lines(stream)[0]["exception"]

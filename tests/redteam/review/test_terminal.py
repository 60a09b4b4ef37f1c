"""Text of an agent that wants to drive the operator's terminal."""

import io
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from kars_cli import output
from kars_cli.commands.connect import ChatFormat, _turn

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\x08\r\u202e\u200f"


class Terminal(io.StringIO):
    """A terminal that remembers what it was told."""

    def isatty(self) -> bool:
        """Say yes."""
        return True


class Agent:
    """An agent that answers with escapes everywhere."""

    async def say(self, _text: str, _name: str) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of one turn."""
        yield {"type": "delta", "text": ESCAPES}
        yield {"type": "tool_call", "name": ESCAPES}
        yield {"type": "error", "reason": ESCAPES, "message": ESCAPES}


def harmless(text: str) -> bool:
    """Tell whether a terminal only prints this, but for colours of our own."""
    for style in ("\x1b[0m", "\x1b[2m", "\x1b[1;31m", "\x1b[1m"):
        text = text.replace(style, "")
    return all(char.isprintable() or char == "\n" for char in text)


async def test_an_agents_answer_does_not_drive_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert not await _turn(Agent(), "hi", "", ChatFormat.TEXT)  # type: ignore[arg-type]  # a stand-in
    assert harmless(out.getvalue())
    assert harmless(err.getvalue())


@pytest.mark.parametrize("form", [output.Format.JSON, output.Format.YAML])
def test_data_on_a_terminal_is_harmless_and_in_a_pipe_exact(
    monkeypatch: pytest.MonkeyPatch, form: output.Format
) -> None:
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stdout", stream)
        output.data({"detail": ESCAPES, "name": "é"}, form)
        assert not stream.isatty() or harmless(stream.getvalue())
        assert "é" in stream.getvalue()
    assert form is output.Format.YAML or "\u202e" in stream.getvalue()


def test_a_table_is_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    output.table(("A", "B"), [(ESCAPES, "[bold red]x[/]")])
    assert harmless(out.getvalue())
    assert "[bold red]x[/]" in out.getvalue()

"""Writes an incident report from the notes of the people who were there.

A plain Pydantic AI program. It knows nothing of kars: it believes that it talks to OpenAI with a key
from its environment, and works on the files of its home folder.
"""

import os
from pathlib import Path

from pydantic_ai import Agent

HOME = Path(os.environ.get("HOME", "."))
NOTES = HOME / "notes"
REPORTS = HOME / "reports"
PUBLISHED = HOME / "published"

agent = Agent(
    f"openai-chat:{os.environ.get('KARS_MODEL', 'gpt-4o-mini')}",
    instructions=(
        "You write incident reports. List the notes, read every one of them, then write one short report in "
        "Markdown (what happened with times, cause, follow-up) with write_report. Call publish_report when "
        "you are asked to publish. Use only what the notes say. Call a tool whenever you are asked to use it."
    ),
)


@agent.tool_plain
def list_notes() -> list[str]:
    """List the names of the notes."""
    return sorted(path.name for path in NOTES.iterdir() if path.is_file())


@agent.tool_plain
def read_note(name: str) -> str:
    """Read one note.

    Args:
        name: Name of the note, as list_notes gives it.
    """
    return (NOTES / Path(name).name).read_text(encoding="utf-8")


@agent.tool_plain
def write_report(name: str, markdown: str) -> str:
    """Write a report into the reports folder.

    Args:
        name: File name, ending in .md.
        markdown: The whole report.
    """
    REPORTS.mkdir(exist_ok=True)
    (REPORTS / Path(name).name).write_text(markdown, encoding="utf-8")
    return f"written: reports/{Path(name).name}, {len(markdown)} characters"


@agent.tool_plain
def publish_report(name: str) -> str:
    """Publish a report that was written before, for everybody to read.

    Args:
        name: File name of the report.
    """
    PUBLISHED.mkdir(exist_ok=True)
    report = REPORTS / Path(name).name
    (PUBLISHED / report.name).write_bytes(report.read_bytes())
    return f"published: {report.name}"


@agent.tool_plain
def delete_notes(name: str) -> str:
    """Delete a note for good.

    Args:
        name: Name of the note.
    """
    (NOTES / Path(name).name).unlink()
    return f"deleted: {name}"

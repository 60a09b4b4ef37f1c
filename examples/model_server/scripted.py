"""The deterministic model: says the same for the same conversation, and plays the quickstart's task.

It reads the conversation as a model would: what was asked last, which tools are on offer, what they have
answered. A wish with "delete" makes it call a tool that was not offered, as a model does that was talked
into something; the router must stop that, not the model.
"""

import json
import re

from examples.model_server.completions import Answer, Request, ToolCall
from examples.model_server.conversation import Conversation

REPORT = "incident-report.md"
_QUESTION = "Please review"
_TIMED = re.compile(r"^-\s*(\d\d:\d\d)\s+(.+)$", re.MULTILINE)
_FACT = re.compile(r"^(Cause|Impact|Follow-up):\s*(.+)$", re.MULTILINE)


class ScriptedModel:
    """A model without a model."""

    label = "embedded deterministic model server (examples/model_server; not a real model)"

    def answer(self, request: Request) -> Answer:
        """Return the next step of the conversation."""
        talk = Conversation.of(request.messages)
        wish = talk.wish.lower()
        if not request.tools:
            return Answer(text=_short_reply(talk.wish))
        if "kars_mesh_send" in request.tool_names and "review" in wish:
            return _review(talk) if "review of it" in wish else _hand_over(talk)
        if "delete" in wish:
            return _once(talk, "delete_notes", {"name": "1-timeline.md"})
        if "notes" in wish and "list_notes" in request.tool_names:
            return _report(talk, publish="publish" in wish)
        if "publish" in wish:
            return _once(talk, "publish_report", {"name": REPORT})
        return Answer(text=_short_reply(talk.wish))


def next_step(talk: Conversation) -> str:
    """Return the tool that the report task needs next, or nothing when it is complete."""
    listed = talk.results("list_notes")
    if not listed:
        return "list_notes"
    if unread(talk):
        return "read_note"
    if not talk.results("write_report"):
        return "write_report"
    if "publish" in talk.wish.lower() and not talk.results("publish_report"):
        return "publish_report"
    return ""


def unread(talk: Conversation) -> list[str]:
    """Return the notes that were listed and not read."""
    listed = [name for item in talk.results("list_notes") for name in _names(item.result)]
    read = {str(item.arguments.get("name")) for item in talk.results("read_note")}
    return [name for name in listed if name not in read]


def write_up(notes: list[str]) -> str:
    """Return a report made of the notes' own lines."""
    timed = sorted({match for note in notes for match in _TIMED.findall(note)})
    facts = [match for note in notes for match in _FACT.findall(note)]
    lines = ["# Incident report: checkout outage", ""]
    if timed:
        lines += [f"From {timed[0][0]} to {timed[-1][0]}.", ""]
    for heading, name in (("Impact", "Impact"), ("Cause", "Cause"), ("Follow-up", "Follow-up")):
        found = [text for kind, text in facts if kind == name]
        if found:
            lines += [f"## {heading}", "", *(f"- {text}" for text in found), ""]
    lines += ["## What happened", "", *(f"- {clock} {text}" for clock, text in timed), ""]
    return "\n".join(lines)


def _report(talk: Conversation, *, publish: bool) -> Answer:
    step = next_step(talk)
    if step == "list_notes":
        return Answer(calls=(ToolCall(name=step, arguments={}),))
    if step == "read_note":
        return Answer(calls=tuple(ToolCall(name=step, arguments={"name": name}) for name in unread(talk)))
    if step == "write_report":
        notes = [item.result for item in talk.results("read_note")]
        return Answer(calls=(ToolCall(name=step, arguments={"name": REPORT, "markdown": write_up(notes)}),))
    if step == "publish_report":
        return Answer(calls=(ToolCall(name=step, arguments={"name": REPORT}),))
    end = " and published it" if publish else ""
    return Answer(text=f"I read {len(talk.results('read_note'))} notes, wrote reports/{REPORT}{end}.")


def _hand_over(talk: Conversation) -> Answer:
    """Send the report's file, then ask for a review and wait for it."""
    if not talk.results("kars_mesh_transfer_file"):
        arguments: dict[str, object] = {"to_agent": "reviewer", "file_path": f"/sandbox/reports/{REPORT}"}
        return Answer(calls=(ToolCall(name="kars_mesh_transfer_file", arguments=arguments),))
    if not talk.results("kars_mesh_send"):
        content = f"{_QUESTION} {REPORT}: is the cause named, is there a follow-up?"
        arguments = {"to_agent": "reviewer", "content": content, "wait_for_reply": True}
        return Answer(calls=(ToolCall(name="kars_mesh_send", arguments=arguments),))
    return Answer(text=f"The reviewer said: {talk.results('kars_mesh_send')[-1].result}")


def _review(talk: Conversation) -> Answer:
    """Wait for the reporter's question (its file may come first), then answer it."""
    if not any(_QUESTION in item.result for item in talk.results("kars_mesh_await")):
        arguments: dict[str, object] = {"senders": ["incident-reporter"], "timeout_seconds": 600}
        return Answer(calls=(ToolCall(name="kars_mesh_await", arguments=arguments),))
    if not talk.results("kars_mesh_send"):
        content = "Reviewed: the cause is named and there is a follow-up."
        arguments = {"to_agent": "incident-reporter", "content": content}
        return Answer(calls=(ToolCall(name="kars_mesh_send", arguments=arguments),))
    return Answer(text="I sent my review.")


def _once(talk: Conversation, tool: str, arguments: dict[str, object]) -> Answer:
    if talk.done:
        return Answer(text=f"Done. {talk.done[-1].result}")
    return Answer(calls=(ToolCall(name=tool, arguments=arguments),))


def _short_reply(wish: str) -> str:
    if "capital of france" in wish.lower():
        return "The capital of France is Paris."
    return f"You said: {' '.join(wish.split())[:200]}"


def _names(result: str) -> list[str]:
    try:
        names = json.loads(result)
    except ValueError:
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []

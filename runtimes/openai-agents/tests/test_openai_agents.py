"""The runtime as a process, with the real framework, against the example's model server."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from agents.exceptions import MaxTurnsExceeded
from kars_runtime_openai_agents.adapter import failure
from kars_sdk.chat import Failed

ROOT = Path(__file__).resolve().parents[3]
AGENT = """
import os
from agents import Agent, function_tool

@function_tool
def list_notes() -> str:
    "List the names of the notes."
    return '["1-timeline.md"]'

@function_tool
def read_note(name: str) -> str:
    "Read one note."
    return "- 09:05 the alarm rang\\nCause: a fuse"

@function_tool
def write_report(name: str, markdown: str) -> str:
    "Write a report."
    return f"written: {len(markdown)}"

agent = Agent(name="reporter", model=os.environ["KARS_MODEL"], tools=[list_notes, read_note, write_report])
"""


@pytest.fixture
def model_url(tmp_path: Path) -> Iterator[str]:
    key = tmp_path / "key"
    key.write_text("k-1")
    server = subprocess.Popen(
        [sys.executable, "-m", "examples.model_server", "--key-file", str(key), "--with-parent"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    yield server.stdout.readline().strip()
    server.communicate(timeout=10)  # closes its standard input, which ends it


class Runtime:
    """A running runtime and what it has printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []

    async def until(self, name: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        async with asyncio.timeout(30):
            while True:
                line = await self.process.stdout.readline()
                assert line, f"the runtime ended before {name}: {self.events}"
                self.events.append(json.loads(line))
                if self.events[-1]["event"] == name:
                    return self.events[-1]

    async def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode


@pytest.fixture
async def start(tmp_path: Path, model_url: str) -> AsyncIterator[Any]:
    code = tmp_path / "agent"
    code.mkdir()
    (code / "kars_test_openai_agent.py").write_text(AGENT)
    running: list[Runtime] = []

    async def run(*arguments: str, **environ: str) -> Runtime:
        base = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "OPENAI_BASE_URL": model_url,
            "OPENAI_API_KEY": "k-1",
            "KARS_MODEL": "gpt-4o-mini",
            "KARS_RUNTIME_CONTRACT_VERSION": "v1",
            "SANDBOX_NAME": "reporter",
            "KARS_AGENT_CODE": str(code),
            "KARS_CHAT_PORT": "0",
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "kars_runtime_openai_agents", *arguments),
            env=base | environ,
            stdout=asyncio.subprocess.PIPE,
        )
        running.append(Runtime(process))
        return running[-1]

    yield run
    for runtime in running:
        if runtime.process.returncode is None:
            runtime.process.kill()
            await runtime.process.communicate()


async def test_unmodified_agent_does_its_task_then_chats_and_ends_at_sigterm(start: Any) -> None:
    runtime: Runtime = await start("--task", "Read the incident notes and write the incident report.")
    port = (await runtime.until("serving"))["port"]
    assert "1 notes" in (await runtime.until("turn_done"))["text"]
    called = [event["tool"] for event in runtime.events if event["event"] == "tool_result"]
    assert called == ["list_notes", "read_note", "write_report"]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert json.loads(await reader.readline())["runtime"] == "openai-agents"
    text, event = "", {"type": ""}
    writer.write(b'{"type":"message","text":"hello"}\n')
    async with asyncio.timeout(20):
        while event["type"] not in ("done", "error"):
            event = json.loads(await reader.readline())
            text += event.get("text", "")
    assert text == "You said: hello"
    writer.close()
    await writer.wait_closed()
    assert await runtime.end() == 0


async def test_refused_task_is_printed_with_its_reason_and_chat_goes_on(start: Any) -> None:
    runtime: Runtime = await start("--task", "hello", OPENAI_API_KEY="wrong")
    assert (await runtime.until("turn_failed"))["reason"] == "invalid_api_key"
    assert await runtime.end() == 0


async def test_a_sandbox_of_another_contract_is_refused(start: Any) -> None:
    runtime: Runtime = await start(KARS_RUNTIME_CONTRACT_VERSION="v2")
    assert (await runtime.until("refused"))["reason"] == "contract_version_unsupported"
    await runtime.process.communicate()
    assert runtime.process.returncode == 78


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"error": {"code": "policy_denied", "message": "no"}}, Failed("policy_denied", "no")),
        ({"code": "budget_exceeded", "message": "spent"}, Failed("budget_exceeded", "spent")),
        ({"code": "Not A Code"}, Failed("http_403", "the model call ended with 403")),
        (None, Failed("http_403", "the model call ended with 403")),
    ],
)
def test_a_refusal_keeps_the_routers_reason(body: object, expected: Failed) -> None:
    response = httpx2.Response(403, request=httpx2.Request("POST", "http://door"))
    assert failure(openai.APIStatusError("x", response=response, body=body)) == expected


def test_other_failures_have_a_reason_too() -> None:
    assert failure(MaxTurnsExceeded("30")).reason == "agent_run_failed"

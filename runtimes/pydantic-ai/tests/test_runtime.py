"""The runtime as a process, with the quickstart's agent and the example's model server over real sockets."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from kars_runtime_pydantic_ai.adapter import failure
from kars_runtime_pydantic_ai.loading import LoadError, load_agent
from kars_sdk.chat import Failed
from pydantic_ai.exceptions import ModelHTTPError, UsageLimitExceeded

ROOT = Path(__file__).resolve().parents[3]
QUICKSTART = ROOT / "examples" / "quickstart"
TASK = "Read the incident notes, write the incident report and publish it."


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
    assert server.returncode == 0


class Runtime:
    """A running runtime and what it has printed."""

    def __init__(self, process: asyncio.subprocess.Process, home: Path) -> None:
        self.process = process
        self.home = home
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
        return await self.ended()

    async def ended(self) -> int:
        async with asyncio.timeout(10):
            await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode


@pytest.fixture
async def start(tmp_path: Path, model_url: str) -> AsyncIterator[Any]:
    home = tmp_path / "sandbox"
    shutil.copytree(QUICKSTART / "workspace", home)
    running: list[Runtime] = []

    async def run(*arguments: str, **environ: str) -> Runtime:
        base = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "OPENAI_BASE_URL": model_url,
            "OPENAI_API_KEY": "k-1",
            "KARS_RUNTIME_CONTRACT_VERSION": "v1",
            "SANDBOX_NAME": "reporter",
            "KARS_AGENT_CODE": str(QUICKSTART / "agent"),
            "KARS_CHAT_PORT": "0",
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "kars_runtime_pydantic_ai", *arguments),
            env=base | environ,
            stdout=asyncio.subprocess.PIPE,
        )
        running.append(Runtime(process, home))
        return running[-1]

    yield run
    for runtime in running:
        if runtime.process.returncode is None:
            runtime.process.kill()
            await runtime.process.communicate()


async def test_unmodified_agent_does_its_task_then_chats_and_ends_at_sigterm(start: Any) -> None:
    runtime: Runtime = await start("incident_agent:agent", "--task", TASK)
    port = (await runtime.until("serving"))["port"]
    done = await runtime.until("turn_done")
    assert "3 notes" in done["text"]
    report = (runtime.home / "published" / "incident-report.md").read_text()
    assert "## Cause" in report
    assert "migration 0412 dropped an index" in report
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    hello = json.loads(await reader.readline())
    assert (hello["agent"], hello["runtime"]) == ("reporter", "pydantic-ai")
    writer.write(b'{"type":"message","text":"hello"}\n')
    text, event = "", {"type": ""}
    async with asyncio.timeout(20):
        while event["type"] not in ("done", "error"):
            event = json.loads(await reader.readline())
            text += event.get("text", "")
    assert text == "You said: hello"
    writer.close()
    await writer.wait_closed()
    assert await runtime.end() == 0


async def test_refused_task_is_printed_with_its_reason_and_chat_goes_on(start: Any) -> None:
    runtime: Runtime = await start("--task", TASK, OPENAI_API_KEY="wrong")
    failed = await runtime.until("turn_failed")
    assert failed["reason"] == "invalid_api_key"
    assert await runtime.end() == 0


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"KARS_RUNTIME_CONTRACT_VERSION": "v2"}, "contract_version_unsupported"),
        ({"KARS_RUNTIME_CONTRACT_VERSION": ""}, "contract_version_missing"),
        ({"KARS_AGENT_CODE": "/nowhere"}, "agent_code_missing"),
    ],
)
async def test_runtime_refuses_what_it_cannot_run(start: Any, environ: dict[str, str], reason: str) -> None:
    runtime: Runtime = await start(**environ)
    assert (await runtime.until("refused"))["reason"] == reason
    assert await runtime.ended() == 78


@pytest.mark.parametrize(
    ("files", "entrypoint", "reason"),
    [
        ({}, None, "agent_module_ambiguous"),
        ({"one.py": "", "two.py": ""}, None, "agent_module_ambiguous"),
        ({"kars_test_none.py": "x = 1"}, "kars_test_none", "agent_not_found"),
        ({"kars_test_attr.py": "x = 1"}, "kars_test_attr:x", "agent_not_found"),
        ({"kars_test_bad.py": "1 / 0"}, "kars_test_bad", "agent_import_failed"),
    ],
)
def test_agents_that_cannot_be_found_say_why(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, str],
    entrypoint: str | None,
    reason: str,
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(LoadError) as caught:
        load_agent(tmp_path, entrypoint)
    assert caught.value.reason == reason


def test_routers_refusals_keep_their_code() -> None:
    body = {"message": "Blocked by governance policy", "type": "policy_violation", "code": "policy_denied"}
    assert failure(ModelHTTPError(403, "m", body)) == Failed("policy_denied", "Blocked by governance policy")
    assert failure(ModelHTTPError(502, "m", "<html>")).reason == "http_502"
    assert failure(UsageLimitExceeded("too much")).reason == "agent_run_failed"

"""The official JavaScript client, unmodified, in all three bindings."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kars_a2a_gateway_testkit.hook import Hook
from kars_a2a_gateway_testkit.stand import Stand, wait_until

HERE = Path(__file__).parent / "javascript"
BUILD = Path(__file__).parents[3] / "build" / "a2a-javascript"

pytestmark = [
    pytest.mark.skipif(shutil.which("npm") is None, reason="node and npm are not installed"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def installed() -> Path:
    """Install once a checkout; again when the lock file changed."""
    BUILD.mkdir(parents=True, exist_ok=True)
    lock = (HERE / "package-lock.json").read_bytes()
    stamp = BUILD / "installed.json"
    if not stamp.exists() or stamp.read_bytes() != lock:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, BUILD)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(command, cwd=BUILD, check=True, capture_output=True, timeout=240)
        stamp.write_bytes(lock)
    shutil.copy(HERE / "client.mjs", BUILD)
    return BUILD / "client.mjs"


@pytest.fixture
def hook() -> Iterator[Hook]:
    hook = Hook()
    yield hook
    hook.stop()


@pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON", "GRPC"])
def test_javascript_client(stand: Stand, installed: Path, hook: Hook, binding: str) -> None:
    result = subprocess.run(
        ["node", str(installed), stand.url, binding, hook.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    # The client prints notes of its own before.
    seen: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])

    assert seen["name"] == "Sample agent"
    assert seen["verified"] is True
    assert seen["changedVerified"] is False
    assert seen["stream"] == ["task", "statusUpdate", *["artifactUpdate"] * 3, "statusUpdate"]
    assert seen["parts"] == ["part 0", "part 1", "part 2"]
    assert seen["message"] == "good day"
    assert seen["resubscribed"] == {"first": "task", "last": 3}
    assert seen["push"] == {"id": "hook", "token": ""}
    assert seen["canceled"] == 5
    assert seen["notFound"].endswith("TaskNotFoundError")
    assert seen["notCancelable"].endswith("TaskNotCancelableError")
    assert "extra" in seen["extended"]
    wait_until(lambda: "TASK_STATE_CANCELED" in hook.states(), "the push of the cancellation")

"""The controller as a process: it says what is wrong with its settings, serves, and stops cleanly."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def start(state: Path, **settings: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KARS_")}
    environment |= {"KARS_CONTROLLER_STATE_DIR": str(state), "KARS_CONTROLLER_DRAIN_S": "0"} | settings
    return subprocess.Popen(
        [sys.executable, "-m", "kars_controller"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_serves_until_sigterm_and_comes_back_at_the_same_place(tmp_path: Path) -> None:
    endpoints = []
    for _ in range(2):
        process = start(tmp_path)
        try:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and process.poll() is None:
                found = (
                    json.loads((tmp_path / "dev.json").read_text())
                    if (tmp_path / "dev.json").exists()
                    else {}
                )
                if found.get("controller", {}).get("pid") == process.pid:
                    break
                time.sleep(0.05)
            endpoints.append(found["controller"]["endpoint"])
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 0, said
        assert '"level":"error"' not in said
    assert endpoints[0] == endpoints[1]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("KARS_CONTROLLER_TRUST_DOMIAN", "x", "KARS_CONTROLLER_TRUST_DOMIAN: no such setting"),
        ("KARS_CONTROLLER_OPERATOR_LIFETIME_S", "1", "KARS_CONTROLLER_OPERATOR_LIFETIME_S"),
        ("KARS_CONTROLLER_PLATFORM", "moon", "KARS_CONTROLLER_PLATFORM"),
    ],
)
def test_wrong_settings_are_refused_by_name(tmp_path: Path, name: str, value: str, words: str) -> None:
    process = start(tmp_path, **{name: value})
    _, said = process.communicate(timeout=30)
    assert process.returncode == 2
    assert words in said


def test_a_second_controller_on_the_same_state_is_refused(tmp_path: Path) -> None:
    first = start(tmp_path)
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "dev.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        second = start(tmp_path)
        _, said = second.communicate(timeout=30)
        assert second.returncode == 2
        assert "audit_log_locked" in said
    finally:
        first.terminate()
        first.communicate(timeout=30)

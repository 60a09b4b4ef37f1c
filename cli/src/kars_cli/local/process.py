"""The controller as a process: started in a session of its own, watched until it answers, ended by signal."""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from kars_common.errors import KarsError, UnavailableError

from kars_cli import home as homes
from kars_cli.home import Endpoints
from kars_cli.local import providers

_START_S = 30.0
_STOP_S = 20.0
_LAST_LINES = 8


def log_path(home: Path) -> Path:
    """Return where the controller's log goes."""
    return home / "controller" / "controller.log"


def start(home: Path) -> "subprocess.Popen[bytes]":
    """Start the controller and return when it has published where it listens.

    Raises:
        UnavailableError: `controller_start_failed`, with the last lines of its log.
    """
    log = log_path(home)
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    environ = {
        **providers.without_keys(os.environ),
        **_addresses(home),
        "KARS_CONTROLLER_STATE_DIR": str(home),
    }
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", "kars_controller"],
            env=environ,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)
    _await_ready(home, child)
    return child


def stop(endpoints: Endpoints) -> bool:
    """End the controller; pods live on. Returns False when it was not running.

    Raises:
        UnavailableError: `controller_stuck`: it did not end in time.
    """
    if not endpoints.running:
        return False
    try:
        descriptor = os.pidfd_open(endpoints.pid)
    except ProcessLookupError:
        return False
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        if not select.select([descriptor], [], [], _STOP_S)[0]:
            raise UnavailableError(
                "controller_stuck", f"process {endpoints.pid} did not end in {_STOP_S:g} s"
            )
    finally:
        os.close(descriptor)
    return True


def _await_ready(home: Path, child: "subprocess.Popen[bytes]") -> None:
    """Wait for dev.json of this process: the controller writes it last."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        try:
            if homes.endpoints(home).pid == child.pid:
                return
        except KarsError:
            pass  # not written yet
        try:
            child.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
        raise UnavailableError("controller_start_failed", f"the controller ended: {_last_words(home)}")
    child.terminate()
    raise UnavailableError("controller_start_failed", f"no answer after {_START_S:g} s: {_last_words(home)}")


def _addresses(home: Path) -> dict[str, str]:
    """Return the addresses of the last start, as far as they are free: running routers know them."""
    try:
        last = homes.endpoints(home)
    except KarsError:
        return {}
    wanted = {"KARS_CONTROLLER_ADDRESS": last.controller, "KARS_CONTROLLER_BOOTSTRAP_ADDRESS": last.bootstrap}
    return {name: address for name, address in wanted.items() if _free(address)}


def _free(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except (OSError, ValueError):
            return False
    return True


def _last_words(home: Path) -> str:
    try:
        lines = log_path(home).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "no log"
    return "\n".join(lines[-_LAST_LINES:]) or "its log is empty"

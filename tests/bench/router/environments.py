"""Installs what the benchmark needs beside the product, on demand and from locks.

Envoy is the group `bench` of the workspace; the peer has a locked project of
its own. Both are quick no-ops when already in place.
"""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
_UV = ROOT / ".bootstrap" / "bin" / "uv"
_BENCH = ROOT / ".venvs" / "bench"
_PEER = ROOT / ".venvs" / "bench-litellm"


class InstallError(Exception):
    """An environment could not be installed; the text says which and why."""


def ensure_envoy() -> Path:
    """Install the group `bench` into an environment of its own and return its folder.

    Not into the workspace's: the next exact sync there would take it away, perhaps during a run.

    Raises:
        InstallError: uv failed.
    """
    _uv("sync", "--locked", "--quiet", "--only-group", "bench", what="Envoy", cwd=ROOT, environment=_BENCH)
    return _BENCH


def ensure_peer() -> Path:
    """Install the peer's locked environment and return its folder.

    Raises:
        InstallError: uv failed.
    """
    project = Path(__file__).with_name("litellm")
    _uv("sync", "--locked", "--quiet", what="LiteLLM", cwd=project, environment=_PEER)
    return _PEER


def _uv(*arguments: str, what: str, cwd: Path, environment: Path | None = None) -> None:
    if not _UV.exists():
        raise InstallError("uv is not installed here; run `make setup`")
    env = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    env["UV_PYTHON_DOWNLOADS"] = "never"
    if environment is not None:
        env["UV_PROJECT_ENVIRONMENT"] = str(environment)
    done = subprocess.run([_UV, *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InstallError(f"cannot install {what}: {done.stderr.strip()[-800:]}")

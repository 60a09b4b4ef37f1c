"""The environment of the small real model: made when somebody asks for it, from two wheels pinned by hash."""

import os
import subprocess
import sys
from pathlib import Path

from examples.demo.platform import DemoError

_ROOT = Path(__file__).resolve().parents[2]
_UV = _ROOT / ".bootstrap" / "bin" / "uv"
_ENVIRONMENT = _ROOT / ".venvs" / "model-local"
_REQUIREMENTS = _ROOT / "examples" / "model_server" / "requirements-local.txt"


def interpreter() -> Path:
    """Return the Python of the model's environment, which is installed when it is missing or old (130 MB).

    Raises:
        DemoError: it cannot be installed.
    """
    python, done = _ENVIRONMENT / "bin" / "python", _ENVIRONMENT / "installed.txt"
    wanted = _REQUIREMENTS.read_text(encoding="utf-8")
    if not done.is_file() or done.read_text(encoding="utf-8") != wanted:
        _uv("venv", "--clear", "--python", sys.executable, str(_ENVIRONMENT))
        exact = ("--no-deps", "--require-hashes", "--only-binary", ":all:")
        _uv("pip", "install", *exact, "--python", str(python), "--requirements", str(_REQUIREMENTS))
        done.write_text(wanted, encoding="utf-8")
    return python


def _uv(*arguments: str) -> None:
    environment = {**os.environ, "UV_SYSTEM_CERTS": "true", "UV_PYTHON_DOWNLOADS": "never"}
    ended = subprocess.run(
        [str(_UV), "--quiet", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if ended.returncode != 0:
        raise DemoError(f"the local model cannot be installed: {ended.stderr.strip()[-500:]}")

"""Which model the demo talks to, and the key that only the router may hold."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from examples.demo import local_model
from examples.demo.platform import DemoError

OPENAI = "https://api.openai.com/v1"


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """An OpenAI-compatible endpoint."""

    said: str
    url: str
    model: str
    key_file: Path


def new_canary() -> str:
    """A key that nobody else can have."""
    return f"kars-canary-{secrets.token_hex(16)}"


@contextmanager
def model_source(kind: str, scratch: Path, environment: Mapping[str, str]) -> Iterator[ModelSource]:
    """Yield the model to use: a real provider when the environment names one, else a server of our own.

    Raises:
        DemoError: the server of our own did not start.
    """
    key = environment.get("KARS_PROVIDER_KEY") or environment.get("OPENAI_API_KEY")
    url = environment.get("KARS_PROVIDER_URL") or (OPENAI if environment.get("OPENAI_API_KEY") else "")
    key_file = scratch / "provider.key"
    if kind == "scripted" and key and url:
        _write(key_file, key)
        model = environment.get("KARS_PROVIDER_MODEL", "gpt-4o-mini")
        yield ModelSource(
            said=f"real provider at {url}, model {model}", url=url, model=model, key_file=key_file
        )
        return
    _write(key_file, new_canary())
    names = {
        "scripted": "an embedded deterministic server (examples/model_server): no real model, no key",
        "local": "SmolLM2-135M on this machine: a real, very small model; the server picks its steps",
    }
    with _server(kind, key_file, scratch) as served:
        model = "smollm2" if kind == "local" else "gpt-4.1"
        yield ModelSource(said=names[kind], url=served, model=model, key_file=key_file)


@contextmanager
def _server(kind: str, key_file: Path, scratch: Path) -> Iterator[str]:
    python = local_model.interpreter() if kind == "local" else Path(sys.executable)
    command = [str(python), "-m", "examples.model_server", "--key-file", str(key_file), "--model", kind]
    with (scratch / "model-server.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--with-parent"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        url = server.stdout.readline().strip() if server.stdout else ""
        if not url.startswith("http"):
            raise DemoError(
                f"the model server did not start: {(scratch / 'model-server.log').read_text()[-500:]}"
            )
        yield url
    finally:
        server.terminate()
        server.wait(10)


def _write(path: Path, secret: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret)

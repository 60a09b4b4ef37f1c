"""Logs to attack."""

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import settings
from kars_common.audit import AuditLog

settings.register_profile(
    "kars", deadline=None
)  # a shared machine stalls; hangs are pytest-timeout's business
settings.load_profile("kars")

ORIGIN = "kars.local/ns/team-a/sandbox/quickstart"

OpenLog = Callable[..., AuditLog]


@pytest.fixture(scope="session")
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(b"log key for tests, 32 bytes long")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def open_log(directory: Path, key: Ed25519PrivateKey) -> OpenLog:
    def open_log(**limits: float) -> AuditLog:
        return AuditLog.open(directory, ORIGIN, key, **limits)  # type: ignore[arg-type]

    return open_log

"""Two agents with state on disk, and an authority that both believe."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kars_sdk.mesh.testing import Agent, Authority


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def alice(authority: Authority, tmp_path: Path) -> Iterator[Agent]:
    agent = Agent.create("alice", authority, tmp_path)
    yield agent
    agent.store.close()


@pytest.fixture
def bob(authority: Authority, tmp_path: Path) -> Iterator[Agent]:
    agent = Agent.create("bob", authority, tmp_path)
    yield agent
    agent.store.close()

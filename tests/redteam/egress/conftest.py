"""One world with one real Envoy for all attacks of a file; each sets the policy that it needs."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from kars_egress.policy.entries import Entry
from kars_egress_testkit import world
from kars_egress_testkit.running import Scene, scene

BASE = (
    Entry.build("api.allowed.test"),
    Entry.build("api.allowed.test", scheme="http"),
    Entry.build("*.wild.test"),
    Entry.build("*.wild.test", scheme="http"),
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The running set."""
    world.needs_root()
    directory: Path = tmp_path_factory.mktemp("egress")
    feeds = directory / "feeds.json"
    blocked = directory / "blocked.txt"
    blocked.write_text("evil.test\nevil-in.wild.test\n")
    feeds.write_text(json.dumps({"feeds": [{"name": "ours", "url": str(blocked)}]}))
    with scene(directory, feeds_file=feeds) as running:
        yield running


@pytest.fixture
def stage(running: Scene) -> Scene:
    """The set, with the base allowlist in force."""
    running.allow(*BASE)
    return running

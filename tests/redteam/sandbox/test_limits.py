"""Every row of the probe table that is about how much an agent can take."""

from typing import Any

import pytest

from tests.redteam.sandbox.campaign import MEMORY, MIB, TMP, WORKSPACE

Campaign = dict[str, Any]
WATCHDOG_OVERSHOOT = 40
"""How many times its limit a fast writer can take between two looks of PID 1; announced as degraded."""


def test_fork_bomb_stops_at_the_pid_limit(campaign: Campaign) -> None:
    said = campaign["hogs"]["forks"]["said"]
    assert 50 <= said["forked"] <= 64
    assert said["refused"] == "Resource temporarily unavailable"


def test_memory_hog_gets_no_more_than_its_limit(campaign: Campaign) -> None:
    hog = campaign["hogs"]["memory"]
    assert hog["reason"] == "OOMKilled" or hog["said"] == {"refused": "MemoryError"}
    assert hog["said"].get("mib", 0) * MIB <= MEMORY


def test_many_small_children_together_get_no_more_than_the_limit(campaign: Campaign) -> None:
    hog = campaign["hogs"]["children"]
    assert hog["reason"] == "OOMKilled" or hog["said"]["survivors"] * 24 * MIB <= MEMORY


@pytest.mark.parametrize("place", ["tmp", "shm"])
def test_scratch_space_is_bounded(campaign: Campaign, place: str) -> None:
    said = campaign["hogs"][place]["said"]
    assert said["refused"] == "No space left on device"
    assert said["mib"] * MIB <= TMP


@pytest.mark.parametrize("way", ["workspace", "ghosts"])
def test_workspace_is_bounded_also_for_deleted_files(campaign: Campaign, way: str) -> None:
    hog = campaign["hogs"][way]
    if _state(campaign, "workspace") == "enforced":
        assert hog["said"]["refused"] == "No space left on device"
        assert hog["said"]["mib"] * MIB <= WORKSPACE
    else:
        assert hog["reason"] == "WorkspaceFull"
        assert hog["workspace_mib"] * MIB <= WORKSPACE * WATCHDOG_OVERSHOOT


def test_processor_time_is_bounded(campaign: Campaign) -> None:
    said = campaign["hogs"]["processor"]["said"]
    if _state(campaign, "cpu") == "enforced":
        assert said["share"] < 0.7  # planned: 500 thousandths
    else:
        assert said["share"] < 1.1  # bound to one whole processor
        assert said["affinity"] == "Operation not permitted"


def _state(campaign: Campaign, control: str) -> str:
    states = {control["name"]: control["state"] for control in campaign["strict"]["status"]["isolation"]}
    return str(states[control])

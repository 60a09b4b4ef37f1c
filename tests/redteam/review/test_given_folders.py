"""Folders that a manifest names: what kars itself can read must not reach an agent that cannot."""

import contextlib
import os
import socket
from pathlib import Path

import pytest
from kars_common.errors import InvalidInputError
from kars_controller.platforms.base import AgentPlan, PodPlan, ReadOnlyMount, RouterPlan, SandboxKey
from kars_controller.platforms.local import validation
from kars_controller.platforms.local.layout import PodDirectory
from kars_controller.platforms.local.pod import workspace


def plan(code: Path | None = None, seed: Path | None = None) -> PodPlan:
    """A pod with this code or this first content of the workspace."""
    mounts = () if code is None else (ReadOnlyMount(source=code, target="/sandbox/agent"),)
    agent = AgentPlan(argv=("/bin/true",), code=mounts, workspace_seed=seed)
    return PodPlan(key=SandboxKey("n", "s"), uid="u", digest="d", agent=agent, router=RouterPlan())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """kars' state directory, with a provider's key."""
    directory = tmp_path / "state"
    (directory / "secrets").mkdir(parents=True)
    (directory / "secrets" / "openai.key").write_text("sk-secret")
    return directory


@pytest.mark.parametrize("given", ["code", "seed"])
def test_kars_own_keys_are_given_to_no_agent(home: Path, tmp_path: Path, given: str) -> None:
    link = tmp_path / "innocent"
    link.symlink_to(home / "secrets")
    for source in (home, home / "secrets", home.parent, link, Path("/")):
        with pytest.raises(InvalidInputError, match="cannot be given"):
            validation.check_plan(plan(**{given: source}), home)


@pytest.mark.parametrize("given", ["code", "seed"])
def test_the_machines_settings_and_peoples_keys_are_given_to_no_agent(
    home: Path, tmp_path: Path, given: str
) -> None:
    person = tmp_path / "person"
    (person / ".ssh").mkdir(parents=True)
    cloud = tmp_path / "cloud"
    (cloud / ".aws").mkdir(parents=True)
    (cloud / ".aws" / "credentials").write_text("key")
    refused = [
        person,
        person / ".ssh",
        cloud,
        cloud / ".aws",
        Path("/etc"),
        Path("/etc/ssl/.."),
        Path("/home"),
    ]
    for source in (*refused, Path("/proc/self"), Path("/run"), Path("/dev"), Path("/sys")):
        with pytest.raises(InvalidInputError, match="cannot be given"):
            validation.check_plan(plan(**{given: source}), home)


@pytest.mark.parametrize("given", ["code", "seed"])
def test_an_ordinary_folder_is_given(home: Path, tmp_path: Path, given: str) -> None:
    project = tmp_path / "project"
    (project / ".docker").mkdir(parents=True)
    validation.check_plan(plan(**{given: project}), home)


@pytest.mark.parametrize("kind", ["socket", "pipe"])
def test_code_with_a_way_to_the_host_in_it_is_not_mounted(home: Path, tmp_path: Path, kind: str) -> None:
    code = tmp_path / "code"
    (code / ".git").mkdir(parents=True)
    (code / "ordinary").symlink_to("main.py")
    place = code / ".git" / "ipc"
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        if kind == "socket":
            listener.bind(str(place))
        else:
            os.mkfifo(place)
        with pytest.raises(InvalidInputError, match="socket, a pipe"):
            validation.check_plan(plan(code=code), home)
        with pytest.raises(InvalidInputError, match="neither a folder"):
            validation.check_plan(plan(code=place), home)
    place.unlink()
    validation.check_plan(plan(code=code), home)


def test_a_seed_gives_no_file_that_it_only_names(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    seed = tmp_path / "seed"
    seed.mkdir()
    (seed / "link").symlink_to(secret)
    (seed / "folder").symlink_to(tmp_path)
    os.mkfifo(seed / "fifo")
    (seed / "plain").write_text("plain")
    directory = PodDirectory(tmp_path / "pod")
    directory.path.mkdir()
    workspace.prepare(directory, size=1 << 20, seed=seed, quota_problem="for the test")
    assert sorted(entry.name for entry in directory.workspace.iterdir()) == ["plain"]


def test_a_seed_file_that_becomes_a_link_while_it_is_copied_is_refused(tmp_path: Path) -> None:
    secret, link = tmp_path / "secret", tmp_path / "link"
    secret.write_text("secret")
    link.symlink_to(secret)
    with pytest.raises(OSError, match="symbolic links"):
        workspace._copy_file(link, tmp_path / "out")
    assert not (tmp_path / "out").exists()

"""Agent code from git: fetched whole or not at all, and a source cannot reach this machine."""

import os
import subprocess
from pathlib import Path

import pytest
from kars_common.errors import FailedPreconditionError, UnavailableError
from kars_controller.code_sources import CodeStore, GitSource

URL = "https://git.example/team/agent.git"


def git(*arguments: str, cwd: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(cwd), "GIT_CONFIG_NOSYSTEM": "1"}
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main")
    subprocess.run(["git", *identity, *arguments], cwd=cwd, env=environment, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "repository"
    (path / "src").mkdir(parents=True)
    (path / "src" / "main.py").write_text("print('hello')\n")
    (path / "escape").symlink_to("/etc")
    git("init", "--quiet", cwd=path)
    git("add", "-A", cwd=path)
    git("commit", "--quiet", "-m", "first", cwd=path)
    return path


def source(**changes: str) -> GitSource:
    return GitSource(**{"owner": "uid", "url": URL, "ref": "main", **changes})


async def test_code_is_fetched_once_without_the_repository(repository: Path, tmp_path: Path) -> None:
    store = CodeStore(tmp_path / "code", protocol="file")
    wanted = source(path="src")
    await store.ensure(wanted, f"file://{repository}")
    assert (wanted.folder(store.root) / "main.py").read_text() == "print('hello')\n"
    assert not (store.root / wanted.name / ".git").exists()
    await store.ensure(wanted, "file:///nowhere")  # it is there: nothing is fetched
    await store.forget("uid")
    assert not (store.root / "uid").exists()


@pytest.mark.parametrize("path", ["missing", "src/main.py", "escape"])
async def test_a_path_that_is_no_folder_of_the_repository_is_refused(
    repository: Path, tmp_path: Path, path: str
) -> None:
    store = CodeStore(tmp_path / "code", protocol="file")
    with pytest.raises(FailedPreconditionError) as refusal:
        await store.ensure(source(path=path), f"file://{repository}")
    assert refusal.value.reason == "agent_code_unsupported"


async def test_a_failed_fetch_leaves_nothing_and_says_why(repository: Path, tmp_path: Path) -> None:
    store = CodeStore(tmp_path / "code", protocol="file")
    wanted = source(ref="no-such-branch")
    with pytest.raises(UnavailableError) as refusal:
        await store.ensure(wanted, f"file://{repository}")
    assert "no-such-branch" in refusal.value.message
    assert not (store.root / wanted.name).exists()
    assert not list((store.root / "uid").iterdir())


@pytest.mark.parametrize("url", ["file:///etc", "ext::sh -c true"])
async def test_other_transports_stay_shut(repository: Path, tmp_path: Path, url: str) -> None:
    store = CodeStore(tmp_path / "code")
    with pytest.raises(UnavailableError):
        await store.ensure(source(), url if "etc" not in url else f"file://{repository}")


@pytest.mark.parametrize(
    "bad",
    [
        {"url": "http://git.example/x"},
        {"url": "file:///etc"},
        {"url": "ext::sh -c true"},
        {"url": "https://user:secret@git.example/x"},
        {"url": "https://"},
        {"ref": "--upload-pack=sh"},
        {"ref": "a b"},
        {"ref": "a..b"},
        {"path": "/etc"},
        {"path": "../x"},
    ],
)
def test_sources_that_are_refused(bad: dict[str, str]) -> None:
    with pytest.raises(FailedPreconditionError):
        source(**bad)

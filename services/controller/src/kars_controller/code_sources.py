"""Fetches agent code from git into the controller's own folder, for sandboxes that have no network.

Only https is spoken, without credentials, hooks, submodules or this machine's git configuration. A checkout
is complete or absent: it is made beside its place and moved there. Knows no sandbox.
"""

import asyncio
import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from kars_common.errors import FailedPreconditionError, UnavailableError, clean_text

_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class GitSource:
    """A folder in a repository, for one sandbox: fetched once, and again when url or ref change."""

    owner: str
    """Uid of the sandbox."""

    url: str
    ref: str = "HEAD"
    path: str = ""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme != "https" or not parts.hostname or parts.username or parts.password:
            raise _unsupported("agentCode.git.url must be https:// without user name and password")
        if not _REF.fullmatch(self.ref) or ".." in self.ref:
            raise _unsupported("agentCode.git.ref must be a branch, tag or commit")
        folder = PurePosixPath(self.path)
        if folder.is_absolute() or ".." in folder.parts:
            raise _unsupported("agentCode.git.path must stay in the repository")

    @property
    def name(self) -> str:
        """Name of the checkout's folder."""
        revision = hashlib.sha256(f"{self.url}\0{self.ref}".encode()).hexdigest()[:32]
        return f"{self.owner}/{revision}"

    def folder(self, root: Path) -> Path:
        """Return where the code is once it is fetched."""
        return root / self.name / self.path


class CodeStore:
    """Checkouts below one folder."""

    def __init__(self, root: Path, *, protocol: str = "https", timeout_s: float = _TIMEOUT_S) -> None:
        """Use a folder; it is made when first needed.

        Args:
            root: where checkouts are kept.
            protocol: the one transport that git may use; tests have no https server.
            timeout_s: longest time for one fetch.
        """
        self.root = root
        self._protocol = protocol
        self._timeout_s = timeout_s

    async def ensure(self, source: GitSource, url: str | None = None) -> None:
        """Fetch a source unless it is there.

        Raises:
            UnavailableError: `agent_code_unavailable`, the repository cannot be fetched now.
            FailedPreconditionError: `agent_code_unsupported`, it has no such folder.
        """
        if not (self.root / source.name).exists():
            await self._fetch(source, url or source.url)
        folder = source.folder(self.root)
        inside = folder.resolve().is_relative_to((self.root / source.name).resolve())
        if not inside or not folder.is_dir():
            raise _unsupported(f"agentCode.git.path {source.path!r} is no folder of the repository")

    async def forget(self, owner: str) -> None:
        """Remove what was fetched for a sandbox."""
        await asyncio.to_thread(shutil.rmtree, self.root / owner, ignore_errors=True)

    async def _fetch(self, source: GitSource, url: str) -> None:
        self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
        fresh = (self.root / source.name).with_suffix(".new")
        fresh.parent.mkdir(mode=0o755, exist_ok=True)
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            await self._git("init", "--quiet", str(fresh))
            await self._git("-C", str(fresh), "fetch", "--quiet", "--depth=1", "--no-tags", url, source.ref)
            await self._git("-C", str(fresh), "checkout", "--quiet", "--detach", "FETCH_HEAD")
            shutil.rmtree(fresh / ".git")
            fresh.rename(self.root / source.name)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    async def _git(self, *arguments: str) -> None:
        configuration = {
            "protocol.allow": "never",
            f"protocol.{self._protocol}.allow": "always",
            "core.hooksPath": os.devnull,
            "init.templateDir": "",
            "http.followRedirects": "false",
        }
        options = [part for name, value in configuration.items() for part in ("-c", f"{name}={value}")]
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.root),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_TERMINAL_PROMPT": "0",
        }
        try:
            process = await asyncio.create_subprocess_exec(
                "git",
                *options,
                *arguments,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                umask=0o022,  # the agent, another user, reads it
            )
        except FileNotFoundError as exc:
            raise UnavailableError("agent_code_unavailable", "git is not installed on this machine") from exc
        try:
            async with asyncio.timeout(self._timeout_s):
                _, said = await process.communicate()
        except BaseException as exc:
            process.kill()
            await process.wait()
            if isinstance(exc, TimeoutError):
                message = f"git did not finish within {self._timeout_s:.0f} s"
                raise UnavailableError("agent_code_unavailable", message) from exc
            raise
        if process.returncode != 0:
            what = clean_text(said.decode("utf-8", "replace"), 300)
            raise UnavailableError("agent_code_unavailable", f"git cannot fetch the agent's code: {what}")


def _unsupported(what: str) -> FailedPreconditionError:
    return FailedPreconditionError("agent_code_unsupported", what)

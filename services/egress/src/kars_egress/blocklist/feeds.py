"""One feed: fetched with its ETag, bounded, checked, and kept; a failure keeps the last good one.

Kept on disk are the bytes that were accepted, and beside them what they were (ETag, digest, time). A feed
that names its own SHA-256 must have it.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import orjson
from kars_common import files
from kars_common.errors import InvalidInputError, KarsError, UnavailableError

from kars_egress.blocklist import parsing

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")


@dataclass(frozen=True, slots=True)
class Feed:
    """Where a list comes from."""

    name: str
    url: str
    """https, or an absolute path for a list that is shipped."""
    sha256_url: str = ""
    """Where its SHA-256 is published, in hexadecimal; empty when it is not."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InvalidInputError("feed_invalid", "a feed's name is at most 31 of a-z 0-9 -")
        for url in filter(None, (self.url, self.sha256_url)):
            if not url.startswith(("https://", "/")):
                raise InvalidInputError(
                    "feed_invalid", f"feed {self.name}: only https:// or an absolute path"
                )


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a fetch brought; body None when nothing changed."""

    body: bytes | None
    etag: str


class Fetcher(Protocol):
    """Gets bytes from a URL, bounded."""

    async def fetch(self, url: str, etag: str, max_bytes: int) -> Fetched:
        """Fetch unless the ETag still holds.

        Raises:
            UnavailableError: `feed_unavailable`.
            InvalidInputError: `feed_too_large`.
        """
        ...


@dataclass(frozen=True, slots=True)
class FeedState:
    """How fresh a feed is."""

    name: str
    domains: int = 0
    fetched_s: float = 0.0
    etag: str = ""
    digest: str = ""
    problem: str = ""


class FeedStore:
    """The last good state of one feed, on disk and in memory."""

    def __init__(self, feed: Feed, directory: Path, clock_s: Callable[[], float]) -> None:
        self.feed = feed
        self._list = directory / f"{feed.name}.list"
        self._meta = directory / f"{feed.name}.json"
        self._clock_s = clock_s
        self.state = FeedState(feed.name)
        self.domains: frozenset[str] = frozenset()

    def load(self) -> None:
        """Take what was kept, if it is what it was."""
        try:
            meta = orjson.loads(self._meta.read_bytes())
            data = self._list.read_bytes()
            if _digest(data) != meta["digest"]:
                raise InvalidInputError("feed_invalid", "the kept list is not what was accepted")
            domains = parsing.parse(data)
            self._accept(domains, float(meta["fetched_s"]), str(meta["etag"]), meta["digest"])
        except FileNotFoundError:
            return
        except (KarsError, OSError, ValueError, KeyError, TypeError) as exc:
            self.state = replace(self.state, problem=f"the kept list cannot be used: {exc}")

    async def refresh(self, fetcher: Fetcher) -> bool:
        """Fetch once; tells whether the domains changed. A failure changes only `state.problem`."""
        try:
            fetched = await fetcher.fetch(self.feed.url, self.state.etag, parsing.MAX_BYTES)
            if fetched.body is None:
                self.state = replace(self.state, fetched_s=self._clock_s(), problem="")
                return False
            digest = _digest(fetched.body)
            await self._check_published(fetcher, digest)
            if digest == self.state.digest:
                self.state = replace(self.state, fetched_s=self._clock_s(), etag=fetched.etag, problem="")
                return False
            domains = parsing.parse(fetched.body)
        except (InvalidInputError, UnavailableError) as error:
            self.state = replace(self.state, problem=str(error))
            return False
        self._keep(fetched, digest)
        self._accept(domains, self._clock_s(), fetched.etag, digest)
        return True

    async def _check_published(self, fetcher: Fetcher, digest: str) -> None:
        if not self.feed.sha256_url:
            return
        published = (await fetcher.fetch(self.feed.sha256_url, "", 4096)).body or b""
        first = published.split()[:1]
        if first != [digest.removeprefix("sha256:").encode()]:
            raise InvalidInputError(
                "feed_digest_mismatch", "the list has not the SHA-256 that its publisher names"
            )

    def _keep(self, fetched: Fetched, digest: str) -> None:
        files.replace(self._list, fetched.body or b"")
        meta = {"etag": fetched.etag, "digest": digest, "fetched_s": self._clock_s()}
        files.replace(self._meta, orjson.dumps(meta))

    def _accept(self, domains: set[str], fetched_s: float, etag: str, digest: str) -> None:
        self.domains = frozenset(domains)
        self.state = FeedState(self.feed.name, len(domains), fetched_s, etag, digest)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"

"""The blocklist in force: the union of every feed's last good list, pushed to Envoy when it changed."""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import orjson
from kars_common.errors import InvalidInputError
from kars_common.tasks import jittered

from kars_egress.blocklist.domains import DomainSet
from kars_egress.blocklist.feeds import Feed, FeedState, FeedStore, Fetcher
from kars_egress.enforcement import distribution
from kars_egress.policy.deciding import Listed
from kars_egress.policy.hosts import Host
from kars_egress.xds import types
from kars_egress.xds.snapshot import Snapshot
from kars_egress.xds.subscription import Subscriptions

_LOG = logging.getLogger(__name__)
MAX_FEEDS = 16
_RETRY_S = 60.0


class Blocklist:
    """Every feed, and what they block together."""

    def __init__(
        self,
        feeds: Sequence[Feed],
        directory: Path,
        snapshot: Snapshot,
        clock_s: Callable[[], float],
        *,
        on_change: Callable[[Listed], None] = lambda _listed: None,
    ) -> None:
        """Build it empty; `load` takes what was kept and pushes the first version.

        Raises:
            InvalidInputError: `feed_invalid`, more feeds than are taken.
        """
        if len(feeds) > MAX_FEEDS or len({feed.name for feed in feeds}) != len(feeds):
            raise InvalidInputError("feed_invalid", f"at most {MAX_FEEDS} feeds, with names of their own")
        self._stores = [FeedStore(feed, directory, clock_s) for feed in feeds]
        self._snapshot = snapshot
        self._on_change = on_change
        self._domains = DomainSet()
        self.digest = ""

    def __len__(self) -> int:
        return len(self._domains)

    def match(self, host: Host) -> str | None:
        """Return the listed domain that covers a host."""
        return self._domains.match(host)

    def statuses(self) -> Iterable[FeedState]:
        """Return how fresh each feed is."""
        return [store.state for store in self._stores]

    def distribution(self, subscriptions: Subscriptions) -> tuple[int, str]:
        """Return how far it has come."""
        return distribution(self._snapshot, subscriptions, types.EXTENSION, types.BLOCKLIST_FILTER, None)

    def load(self) -> None:
        """Take what was kept. Blocks: half a second for 400,000 domains."""
        for store in self._stores:
            store.load()
        self._publish(*_build([store.domains for store in self._stores]))

    async def refresh(self, fetcher: Fetcher) -> bool:
        """Fetch every feed once; tells whether all were good."""
        changed = [await store.refresh(fetcher) for store in self._stores]
        for store in self._stores:
            if store.state.problem:
                _LOG.warning(
                    "a feed keeps its last good list",
                    extra={"feed": store.feed.name, "why": store.state.problem},
                )
        if any(changed):
            # In a thread: calls and pushes go on meanwhile.
            self._publish(*await asyncio.to_thread(_build, [store.domains for store in self._stores]))
        return not any(store.state.problem for store in self._stores)

    async def run(self, fetcher: Fetcher, interval_s: float) -> None:
        """Keep every feed fresh, for ever."""
        while self._stores:
            good = await self.refresh(fetcher)
            await asyncio.sleep(jittered(interval_s if good else min(_RETRY_S, interval_s)))

    def _publish(self, domains: DomainSet, compiled: bytes, digest: str) -> None:
        self._domains = domains
        self.digest = digest
        self._snapshot.put(types.EXTENSION, types.BLOCKLIST_FILTER, compiled)
        self._on_change(domains.match)


def read_feeds(file: Path) -> list[Feed]:
    """Read the feeds' configuration: `{"feeds": [{"name", "url", "sha256Url"?}]}`.

    Raises:
        InvalidInputError: `feed_invalid`.
    """
    try:
        value = orjson.loads(file.read_bytes())
        return [Feed(item["name"], item["url"], item.get("sha256Url", "")) for item in value["feeds"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise InvalidInputError("feed_invalid", f"{file} is not a list of feeds") from exc


def _build(lists: Sequence[frozenset[str]]) -> tuple[DomainSet, bytes, str]:
    domains = DomainSet(frozenset().union(*lists))
    compiled = domains.compile()
    return domains, compiled, f"sha256:{hashlib.sha256(compiled).hexdigest()}"

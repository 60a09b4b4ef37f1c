"""Feeds fail in every way; what was good stays."""

import hashlib
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kars_common.errors import InvalidInputError, UnavailableError
from kars_egress.blocklist import parsing
from kars_egress.blocklist.domains import DomainSet
from kars_egress.blocklist.feeds import Feed, Fetched
from kars_egress.blocklist.fetching import HttpFetcher
from kars_egress.blocklist.service import Blocklist, read_feeds
from kars_egress.policy.hosts import canonical_host
from kars_egress.xds import types
from kars_egress.xds.snapshot import Snapshot

ONE = Feed("one", "https://one.test/list")
TWO = Feed("two", "https://two.test/list", "https://two.test/list.sha256")


class Internet:
    """Answers by URL; an exception is raised."""

    def __init__(self, **answers: object) -> None:
        self.answers: dict[str, object] = answers
        self.etags: list[str] = []

    async def fetch(self, url: str, etag: str, max_bytes: int) -> Fetched:
        self.etags.append(etag)
        answer = self.answers[url.rpartition("//")[2].replace(".test/list", "").replace(".", "_")]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Fetched):
            return answer
        assert isinstance(answer, bytes)
        if len(answer) > max_bytes:
            raise InvalidInputError("feed_too_large", "too large")
        return Fetched(answer, "e1")


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def blocked(blocklist: Blocklist, *hosts: str) -> list[bool]:
    return [blocklist.match(canonical_host(host)) is not None for host in hosts]


async def test_register_54_a_feed_that_fails_keeps_its_last_good_list(tmp_path: Path) -> None:
    snapshot = Snapshot()
    blocklist = Blocklist([ONE, TWO], tmp_path, snapshot, lambda: 5.0)
    blocklist.load()
    internet = Internet(one=b"a.test\n", two=b"b.test\n", two_sha256=sha(b"b.test\n"))
    assert await blocklist.refresh(internet)
    assert blocked(blocklist, "a.test", "x.a.test", "b.test", "c.test") == [True, True, True, False]
    before = snapshot.get(types.EXTENSION, types.BLOCKLIST_FILTER)
    for broken in (
        UnavailableError("feed_unavailable", "answered 500"),
        b"<html>\n<body>we are down</body>\n</html>\n",
        b"",
        b"\xff\xfe" * 100,
    ):
        internet.answers["one"] = broken
        assert not await blocklist.refresh(internet)
        assert blocked(blocklist, "a.test", "b.test") == [True, True]
        assert snapshot.get(types.EXTENSION, types.BLOCKLIST_FILTER) == before
    assert [bool(status.problem) for status in blocklist.statuses()] == [True, False]


async def test_a_list_without_the_digest_of_its_publisher_is_refused(tmp_path: Path) -> None:
    blocklist = Blocklist([TWO], tmp_path, Snapshot(), lambda: 5.0)
    blocklist.load()
    internet = Internet(two=b"b.test\n", two_sha256=sha(b"other"))
    assert not await blocklist.refresh(internet)
    assert blocked(blocklist, "b.test") == [False]
    assert "feed_digest_mismatch" in next(iter(blocklist.statuses())).problem


async def test_what_did_not_change_is_not_fetched_or_pushed_again(tmp_path: Path) -> None:
    snapshot = Snapshot()
    blocklist = Blocklist([ONE], tmp_path, snapshot, lambda: 5.0)
    blocklist.load()
    internet = Internet(one=b"a.test\n")
    await blocklist.refresh(internet)
    pushed: list[str] = []
    snapshot.listen(lambda _, name: pushed.append(name))
    internet.answers["one"] = Fetched(None, "e1")
    assert await blocklist.refresh(internet)
    assert internet.etags == ["", "e1"]
    assert pushed == []


async def test_a_restart_has_the_list_without_the_internet(tmp_path: Path) -> None:
    first = Blocklist([ONE], tmp_path, Snapshot(), lambda: 5.0)
    first.load()
    await first.refresh(Internet(one=b"a.test\n"))
    again = Blocklist([ONE], tmp_path, Snapshot(), lambda: 6.0)
    again.load()
    assert blocked(again, "a.test") == [True]
    assert next(iter(again.statuses())).fetched_s == 5.0


async def test_a_kept_list_that_was_changed_is_not_used(tmp_path: Path) -> None:
    first = Blocklist([ONE], tmp_path, Snapshot(), lambda: 5.0)
    first.load()
    await first.refresh(Internet(one=b"a.test\n"))
    (tmp_path / "one.list").write_bytes(b"allowed.test\n")
    again = Blocklist([ONE], tmp_path, Snapshot(), lambda: 6.0)
    again.load()
    assert len(again) == 0
    assert next(iter(again.statuses())).problem


def test_lists_and_hosts_files_are_read() -> None:
    data = b"# c\n! c\n*.wild.test\nPLAIN.test\n"
    data += b"0.0.0.0 hosts.test # why\n127.0.0.1 localhost\nb\xc3\xbccher.test\nx.test.\n"
    assert parsing.parse(data) == {"wild.test", "plain.test", "hosts.test", "xn--bcher-kva.test", "x.test"}


@pytest.mark.parametrize(
    "data", [b"", b"com\n", b"1.2.3.4\n", b"a b c\n" * 10, b"a.test\n" + b"<html>\n" * 3]
)
def test_what_is_no_list_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        parsing.parse(data)


@given(st.binary(max_size=300))
def test_any_bytes_are_domains_or_refused(data: bytes) -> None:
    try:
        domains = parsing.parse(data)
    except InvalidInputError as error:
        assert error.reason == "feed_invalid"  # noqa: PT017 - refusing is one of two good ends
        return
    assert all(canonical_host(domain).text == domain and "." in domain for domain in domains)


def test_a_feed_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsing, "MAX_DOMAINS", 2)
    with pytest.raises(InvalidInputError, match="at most 2"):
        parsing.parse(b"a.test\nb.test\nc.test\n")
    monkeypatch.setattr(parsing, "MAX_BYTES", 3)
    with pytest.raises(InvalidInputError, match="at most 3"):
        parsing.parse(b"a.test\n")


async def test_a_file_is_a_feed(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(b"a.test\n")
    fetched = await HttpFetcher().fetch(str(file), "", 100)
    assert fetched.body == b"a.test\n"
    assert (await HttpFetcher().fetch(str(file), fetched.etag, 100)).body is None
    with pytest.raises(InvalidInputError):
        await HttpFetcher().fetch(str(file), "", 3)
    with pytest.raises(UnavailableError):
        await HttpFetcher().fetch(str(tmp_path / "none"), "", 3)


async def test_plain_http_is_no_way_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError):
        Feed("one", "http://one.test/list")
    with pytest.raises(UnavailableError):
        await HttpFetcher().fetch("http://127.0.0.1:9/", "", 3)


def test_feeds_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "feeds.json"
    file.write_bytes(orjson.dumps({"feeds": [{"name": "one", "url": "https://one.test/list"}]}))
    assert read_feeds(file) == [ONE]
    for broken in (
        b"{}",
        b"[]",
        b"x",
        b'{"feeds": [{"name": "One", "url": "https://x"}]}',
        b'{"feeds": [{"name": "a"}]}',
    ):
        file.write_bytes(broken)
        with pytest.raises(InvalidInputError):
            read_feeds(file)


def test_an_empty_list_blocks_nothing_and_is_still_a_filter() -> None:
    assert DomainSet().match(canonical_host("a.test")) is None
    assert b"blocklist-is-empty.invalid" in DomainSet().compile()

"""The URL corpus: one parser decides, three others and the real proxy must not read it differently."""

import time
from urllib.parse import urlsplit

import pytest
from kars_common.errors import InvalidInputError
from kars_egress.policy.deciding import decide
from kars_egress.policy.entries import Entry
from kars_egress.policy.hosts import Target, parse_url
from kars_egress.policy.sandboxes import SandboxId, SandboxPolicy
from kars_egress_testkit.running import Scene
from pyreqwest.http import Url

from .corpus import URLS, A

POLICY = SandboxPolicy(SandboxId("team", "writer"), entries=(Entry.build(A), Entry.build(A, scheme="http")))


@pytest.fixture(scope="module")
def strict(running: Scene) -> Scene:
    """The running set, with one host allowed."""
    running.allow(*POLICY.entries)
    return running


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len(set(URLS)) >= 60


@pytest.mark.parametrize("url", URLS)
def test_what_we_accept_others_read_alike(url: str) -> None:
    target = _parsed(url)
    if target is None:
        return
    theirs = urlsplit(url)
    assert theirs.hostname is not None
    rust = Url.parse(url)
    host = (rust.host_str or "").strip("[]").removesuffix(".")
    assert (host, rust.port_or_known_default) == (target.host.text, target.port)
    if url.isascii() and "[" not in url:
        assert theirs.hostname.lower().removesuffix(".") == target.host.text


@pytest.mark.parametrize("url", URLS)
def test_the_proxy_reaches_nothing_that_we_refuse(strict: Scene, url: str) -> None:
    stage = strict
    before = len(stage.origins.requests)
    host = "api.allowed.test"
    answer = stage.agent.get(url, host)
    stage.agent.get("/", url.partition("://")[2].partition("/")[0])
    arrived = stage.origins.requests[before:]
    for request in arrived:
        # Whatever the agent wrote, what left was for the one allowed host on the one allowed port.
        assert request["port"] == 80
        name = str(request["headers"]["host"]).lower().removesuffix(":80").removesuffix(".")
        assert name == A, request
    target = _parsed(url)
    if target is not None and not decide(POLICY, target, lambda _: None, time.time()).allowed:
        assert answer.status != 200


def _parsed(url: str) -> Target | None:
    try:
        return parse_url(url)
    except InvalidInputError:
        return None

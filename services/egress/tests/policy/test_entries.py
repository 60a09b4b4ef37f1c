"""Entries mean what they say, and what means too much is refused when it is written."""

import pytest
from kars_common.errors import InvalidInputError
from kars_egress.policy.deciding import decide
from kars_egress.policy.entries import Entry, HostPattern
from kars_egress.policy.hosts import parse_url
from kars_egress.policy.sandboxes import Approval, SandboxId, SandboxPolicy, from_json, to_json

SANDBOX = SandboxId("team", "writer")


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("*", "host_invalid"),
        ("*.com", "wildcard_too_wide"),
        ("com", "wildcard_too_wide"),
        ("*.*.example.com", "host_invalid"),
        ("a.*.example.com", "host_invalid"),
        ("10.0.0.1", "address_not_allowed"),
        ("::1", "address_not_allowed"),
        ("free.tk", "high_risk_tld"),
        ("*.cheap.top", "high_risk_tld"),
        ("", "host_invalid"),
    ],
)
def test_an_entry_that_means_too_much_is_refused(host: str, reason: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        Entry.build(host)
    assert refused.value.reason == reason


def test_register_31_a_port_is_part_of_what_is_allowed() -> None:
    entry = Entry.build("api.example.com")
    assert entry.allows(parse_url("https://api.example.com/"))
    assert not entry.allows(parse_url("https://api.example.com:8443/"))
    assert not entry.allows(parse_url("http://api.example.com:443/"))


def test_a_wildcard_covers_what_is_below_and_nothing_else() -> None:
    pattern = HostPattern.parse("*.example.com")
    for url, matches in {
        "https://a.example.com/": True,
        "https://a.b.example.com/": True,
        "https://example.com/": False,
        "https://badexample.com/": False,
        "https://a.example.com.evil.test/": False,
    }.items():
        assert pattern.matches(parse_url(url).host) is matches, url


def test_paths_match_by_whole_segments() -> None:
    entry = Entry.build("a.example.com", scheme="http", paths=("/v1/read",))
    assert entry.allows(parse_url("http://a.example.com/v1/read/x"))
    assert not entry.allows(parse_url("http://a.example.com/v1/reads"))


@pytest.mark.parametrize("path", ["v1", "/a/../b", "/a//b", "/a?x", "/a#x", "/a%2fb", "/" + "a" * 2000])
def test_a_path_that_can_be_read_in_two_ways_is_refused(path: str) -> None:
    with pytest.raises(InvalidInputError):
        Entry.build("a.example.com", scheme="http", paths=(path,))


def test_rules_of_https_that_nobody_could_keep_are_refused() -> None:
    with pytest.raises(InvalidInputError):
        Entry.build("a.example.com", methods=("GET",))


def test_register_47_strict_is_what_a_sandbox_begins_with() -> None:
    verdict = decide(SandboxPolicy(SANDBOX), parse_url("https://any.example/"), lambda _: None, 0)
    assert (verdict.allowed, verdict.reason) == (False, "not_in_allowlist")


def test_the_order_of_rules() -> None:
    approval = Approval(
        id="a", entries=(Entry.build("b.example.com"),), expires_s=100, reason="why", granted_by="olga"
    )
    policy = SandboxPolicy(
        SANDBOX, entries=(Entry.build("a.example.com"),), approvals=(approval,), learning_until_s=100
    )

    def reason(url: str, now_s: float = 50, listed: str = "") -> str:
        return decide(
            policy, parse_url(url), lambda host: listed if host.text == listed else None, now_s
        ).reason

    assert reason("https://a.example.com/", listed="a.example.com") == "blocklist"
    assert reason("https://a.example.com/") == "allowlist"
    assert reason("https://b.example.com/") == "approval"
    assert reason("https://c.example.com/") == "learning"
    assert reason("https://127.0.0.1/") == "address_not_allowed"
    assert reason("https://c.top/") == "high_risk_tld"
    assert reason("https://c.example.com:8443/") == "port_not_learned"
    assert reason("https://b.example.com/", now_s=100) == "not_in_allowlist"
    assert reason("https://c.example.com/", now_s=100) == "not_in_allowlist"


def test_a_policy_is_kept_and_read_as_it_was() -> None:
    approval = Approval(
        id="a", entries=(Entry.build("*.b.test", port=8443),), expires_s=1.5, reason="why", granted_by="o"
    )
    policy = SandboxPolicy(
        SANDBOX,
        entries=(Entry.build("a.test", scheme="http", methods=("GET",), paths=("/x",)),),
        approvals=(approval,),
        learning_until_s=3.0,
        network_namespace="/run/netns/a",
        generation=7,
    )
    assert from_json(to_json(policy)) == policy
    for broken in ({}, {"sandbox": 1}, to_json(policy) | {"entries": [{"host": "*"}]}):
        with pytest.raises(InvalidInputError):
            from_json(broken)


def test_what_ended_is_gone_and_moves_the_generation() -> None:
    approval = Approval(id="a", entries=(Entry.build("b.test"),), expires_s=10, reason="why", granted_by="o")
    policy = SandboxPolicy(SANDBOX, approvals=(approval,))
    assert policy.without_expired(9) is policy
    ended = policy.without_expired(10)
    assert (ended.approvals, ended.generation) == ((), 1)

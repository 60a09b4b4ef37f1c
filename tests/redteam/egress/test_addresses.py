"""No name leads to an address that is not public: what is connected to is judged, not the name."""

import pytest
from kars_egress_testkit.running import Scene
from kars_egress_testkit.world import PUBLIC, PUBLIC_2, PUBLIC_6

PRIVATE_NAMES = [
    "loop", "zero", "ten", "meta", "cgnat", "lan", "seventeen", "ietf", "bench", "multicast", "broadcast",
    "loop6", "any6", "mapped-loop", "mapped-meta", "compatible", "ula", "link6", "nat64",
    "sixtofour", "alias",
]  # fmt: skip


@pytest.mark.parametrize("name", PRIVATE_NAMES)
def test_a_name_with_a_private_address_is_not_reached(stage: Scene, name: str) -> None:
    host = f"{name}.wild.test"
    plain = stage.agent.http(host)
    assert (plain.status, plain.reason) == (403, "address_not_allowed")
    assert stage.agent.https(host).status == 0
    assert stage.denied(host=host, reason="address_not_allowed")["sandbox"] == "team/writer"
    assert stage.denied(host=host, reason="no_public_address")["sandbox"] == "team/writer"
    assert stage.origins.reached <= {PUBLIC, PUBLIC_2, PUBLIC_6}


@pytest.mark.parametrize("name", ["dead-then-ten", "dead-then-loop", "dead6-then-meta"])
def test_a_dead_public_address_before_a_private_one_opens_nothing(stage: Scene, name: str) -> None:
    """Happy eyeballs tries the next address: it must be gone before anybody chooses."""
    host = f"{name}.wild.test"
    assert stage.agent.http(host).status in {403, 502}
    assert stage.agent.https(host).status == 0
    assert stage.origins.reached <= {PUBLIC, PUBLIC_2, PUBLIC_6}


def test_of_mixed_answers_only_the_public_address_is_used(stage: Scene) -> None:
    answers = [stage.agent.http("public-and-ten.wild.test") for _ in range(10)]
    assert {answer.json()["address"] for answer in answers if answer.status == 200} <= {PUBLIC}
    assert stage.origins.reached <= {PUBLIC, PUBLIC_2, PUBLIC_6}


def test_a_name_that_rebinds_to_loopback_never_reaches_it(stage: Scene) -> None:
    host = "rebind-1.wild.test"
    first = stage.agent.http(host)
    assert (first.status, first.json()["address"]) == (200, PUBLIC)
    for _ in range(20):
        answer = stage.agent.http(host)
        assert answer.status in {200, 403}
    assert stage.origins.reached <= {PUBLIC, PUBLIC_2, PUBLIC_6}


def test_public_ipv6_is_reached_by_name(stage: Scene) -> None:
    """The filter is not "no IPv6": that would be a control that hides what it does."""
    answer = stage.agent.http("six.wild.test")
    assert (answer.status, answer.json()["address"]) == (200, PUBLIC_6)


LITERALS = [
    "127.0.0.1", "10.9.0.5", "169.254.169.254", "203.0.113.10", "0", "127.1", "2130706433", "0x7f000001",
    "0177.0.0.1",
        "[::1]", "[::ffff:127.0.0.1]", "[fd00::5]", "[2001:db8::10]", "[64:ff9b::a9fe:a9fe]", "localhost",
    "localhost.",
]  # fmt: skip


@pytest.mark.parametrize("literal", LITERALS)
def test_no_address_is_reached_by_its_number(stage: Scene, literal: str) -> None:
    for answer in (stage.agent.http(literal), stage.agent.https(literal)):
        assert answer.status in {400, 403}
    assert stage.origins.reached <= {PUBLIC, PUBLIC_2, PUBLIC_6}

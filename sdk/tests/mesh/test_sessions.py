"""What two agents can rely on."""

from kars_sdk.mesh.session import Session
from kars_sdk.mesh.sessions import Opened
from kars_sdk.mesh.testing import Agent


def opened(agent: Agent, payload: bytes, sender: Agent) -> bytes:
    result = agent.sessions.open(payload, sender=sender.name)
    assert isinstance(result, Opened)
    assert result.peer == sender.name
    return result.payload


def connect(alice: Agent, bob: Agent) -> None:
    assert opened(bob, alice.sessions.start(bob.bundle(), bob.name, b"hello"), alice) == b"hello"
    assert opened(alice, bob.sessions.seal(alice.name, b"welcome"), bob) == b"welcome"


def pair(alice: Agent, bob: Agent) -> tuple[Session, Session]:
    connect(alice, bob)
    return alice.sessions.of(bob.name)[0], bob.sessions.of(alice.name)[0]


def test_messages_cross_both_ways(alice: Agent, bob: Agent) -> None:
    connect(alice, bob)
    for number in range(5):
        text = b"message %d" % number
        assert opened(bob, alice.sessions.seal(bob.name, text), alice) == text
        assert opened(alice, bob.sessions.seal(alice.name, text), bob) == text


def test_any_of_the_first_messages_may_arrive_first(alice: Agent, bob: Agent) -> None:
    first = alice.sessions.start(bob.bundle(), bob.name, b"0")
    rest = [alice.sessions.seal(bob.name, b"%d" % number) for number in range(1, 4)]

    assert [opened(bob, payload, alice) for payload in reversed([first, *rest])] == [b"3", b"2", b"1", b"0"]


def test_a_session_survives_a_restart_of_either_side_at_every_step(alice: Agent, bob: Agent) -> None:
    payload = alice.sessions.start(bob.bundle(), bob.name, b"hello")
    for agent in (alice, bob):
        agent.restart()
    assert opened(bob, payload, alice) == b"hello"
    for number in range(6):
        for agent in (alice, bob):
            agent.restart()
        payload = bob.sessions.seal(alice.name, b"%d" % number)
        for agent in (alice, bob):
            agent.restart()
        assert opened(alice, payload, bob) == b"%d" % number
        assert opened(bob, alice.sessions.seal(bob.name, b"ack"), alice) == b"ack"


def test_both_knocking_at_once_ends_in_one_session(alice: Agent, bob: Agent) -> None:
    to_bob = alice.sessions.start(bob.bundle(), bob.name, b"from alice")
    to_alice = bob.sessions.start(alice.bundle(), alice.name, b"from bob")
    assert opened(bob, to_bob, alice) == b"from alice"
    assert opened(alice, to_alice, bob) == b"from bob"

    assert opened(bob, alice.sessions.seal(bob.name, b"1"), alice) == b"1"
    assert opened(alice, bob.sessions.seal(alice.name, b"2"), bob) == b"2"
    ours, theirs = alice.sessions.of(bob.name), bob.sessions.of(alice.name)
    assert ours[0].session_id == theirs[0].session_id == min(each.session_id for each in ours)


def test_a_new_knock_does_not_take_the_old_session_away(alice: Agent, bob: Agent) -> None:
    connect(alice, bob)
    late = alice.sessions.seal(bob.name, b"sent before")
    knock = alice.sessions.start(bob.bundle(), bob.name, b"again")

    result = bob.sessions.open(knock, sender=alice.name)
    assert isinstance(result, Opened)
    assert result.new_session
    assert opened(bob, late, alice) == b"sent before"
    assert opened(alice, bob.sessions.seal(alice.name, b"still here"), bob) == b"still here"


def test_sessions_with_one_peer_are_bounded(alice: Agent, bob: Agent) -> None:
    for _ in range(7):
        bob.sessions.open(alice.sessions.start(bob.bundle(), bob.name, b"again"), sender=alice.name)
    assert len(bob.sessions.of(alice.name)) == len(alice.sessions.of(bob.name)) == 4


def test_lengths_of_messages_hide_in_buckets(alice: Agent, bob: Agent) -> None:
    session, _ = pair(alice, bob)
    lengths = {len(session.encrypt(bytes(size))) for size in range(0, 200, 5)}
    assert len(lengths) == 1
    for size in (1000, 10_000, 100_000):
        assert len(session.encrypt(bytes(size))) < size * 1.12 + 200


def test_the_epoch_moves_and_both_sides_agree(alice: Agent, bob: Agent) -> None:
    ours, theirs = pair(alice, bob)
    for _ in range(200):
        assert theirs.decrypt(ours.encrypt(b"ping")) == b"ping"
        assert ours.decrypt(theirs.encrypt(b"pong")) == b"pong"
    assert ours.epoch == theirs.epoch >= 5


def test_the_epoch_moves_under_loss_and_reordering_and_loses_nothing_that_arrives(
    alice: Agent, bob: Agent
) -> None:
    ours, theirs = pair(alice, bob)
    for turn in range(120):
        for source, target in ((ours, theirs), (theirs, ours)):
            sent = [
                (b"%d %d" % (turn, number), source.encrypt(b"%d %d" % (turn, number))) for number in range(4)
            ]
            arrived = [each for number, each in enumerate(sent) if (turn * 7 + number) % 3]
            for text, message in reversed(arrived):
                assert target.decrypt(message) == text
    assert ours.epoch > 3
    assert abs(ours.epoch - theirs.epoch) <= 1

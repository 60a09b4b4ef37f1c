"""Two peers under an adversarial network; `make soak-mesh` runs the same for 10,000 steps and more."""

import importlib.util
import os
import random
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mesh_adversary", Path(__file__).with_name("adversary.py"))
    if spec is None or spec.loader is None:
        raise AssertionError("adversary.py is beside this file")
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


adversary = _load()
INDEX = strategies.integers(0, 63)


class Network(RuleBasedStateMachine):
    """The rules are the adversary's methods."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.adversary = adversary.Adversary(Path(self.folder.name))

    def teardown(self) -> None:
        self.adversary.close()
        self.folder.cleanup()

    @rule(who=strategies.integers(0, 1), size=strategies.integers(0, 2000))
    def send(self, who: int, size: int) -> None:
        self.adversary.send(who, size)

    @rule(index=INDEX)
    def deliver(self, index: int) -> None:
        self.adversary.deliver(index)

    @rule()
    def deliver_next(self) -> None:
        self.adversary.deliver(0)

    @rule(index=INDEX)
    def drop(self, index: int) -> None:
        self.adversary.drop(index)

    @rule(index=INDEX)
    def again(self, index: int) -> None:
        self.adversary.again(index)

    @rule(index=INDEX, bit=strategies.integers(0, 65535))
    def flip(self, index: int, bit: int) -> None:
        self.adversary.flip(index, bit)

    @rule(index=INDEX, length=strategies.integers(0, 65535))
    def cut(self, index: int, length: int) -> None:
        self.adversary.cut(index, length)

    @rule(index=INDEX, other=INDEX, at=strategies.integers(0, 65535))
    def splice(self, index: int, other: int, at: int) -> None:
        self.adversary.splice(index, other, at)

    @rule(index=INDEX)
    def reflect(self, index: int) -> None:
        self.adversary.reflect(index)

    @rule(who=strategies.integers(0, 1))
    def restart(self, who: int) -> None:
        self.adversary.restart(who)


def test_no_plaintext_is_lost_accepted_twice_or_invented() -> None:
    run_state_machine_as_test(
        Network, settings=settings(max_examples=25, stateful_step_count=40, deadline=None, print_blob=True)
    )


STEPS = (
    "send",
    "send",
    "send",
    "deliver",
    "deliver",
    "deliver",
    "next",
    "next",
    "drop",
    "again",
    "flip",
    "cut",
    "splice",
    "reflect",
    "restart",
)


def test_a_long_random_walk_keeps_the_invariants(tmp_path: Path) -> None:
    steps = int(os.environ.get("KARS_SOAK_STEPS", "1500"))
    seed = int(os.environ.get("KARS_SOAK_SEED", "20261124"))
    chance = random.Random(seed)
    network = adversary.Adversary(tmp_path)
    try:
        for _ in range(steps):
            walk(network, chance)
        assert network.accepted > steps / 8, f"seed {seed}: hardly anything got through"
        assert network.refused > steps / 8
        epochs = [
            session.epoch
            for agent, peer in (network.agents, network.agents[::-1])
            for session in agent.sessions.of(peer.name)
        ]
        assert max(epochs) >= steps // 1000, f"seed {seed}: the post-quantum ratchet stood still at {epochs}"
    except BaseException:
        print(f"seed {seed}")
        raise
    finally:
        network.close()


def walk(network: "adversary.Adversary", chance: random.Random) -> None:  # type: ignore[name-defined]
    step, one, two, bit = (
        chance.choice(STEPS),
        chance.randrange(64),
        chance.randrange(64),
        chance.randrange(65536),
    )
    match step:
        case "send":
            network.send(one % 2, bit % 2000 if two else bit)
        case "deliver":
            network.deliver(one)
        case "next":
            network.deliver(0)
        case "drop":
            network.drop(one)
        case "again":
            network.again(one)
        case "flip":
            network.flip(one, bit)
        case "cut":
            network.cut(one, bit)
        case "splice":
            network.splice(one, two, bit)
        case "reflect":
            network.reflect(one)
        case _:
            if not bit % 8:
                network.restart(one % 2)


def test_the_adversary_notices_a_broken_receiver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The invariants can fail: a receiver that forgets what it has seen is caught."""
    network = adversary.Adversary(tmp_path)
    network.send(0, 0)
    network.deliver(0)
    message = network.past[0]
    result = network.agents[1].sessions.of(network.agents[0].name)[0]
    monkeypatch.setattr(
        type(network.agents[1].sessions),
        "open",
        lambda *_, **__: adversary.Opened(
            peer=network.agents[0].name, payload=message.text, session_id=result.session_id, new_session=False
        ),
    )
    with pytest.raises(AssertionError, match="accepted twice"):
        network.again(0)
    network.close()

"""Ways to make a rate limit forget."""

from typing import Any

from kars_router.governance import actions
from kars_router.governance.engine import Engine, Ruling
from kars_router.governance.rates import MAX_BUCKETS, RateState
from kars_router_testkit import bundle


class Clock:
    """A clock that tests turn."""

    now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def ask(engine: Engine, name: str, rates: RateState) -> Ruling:
    """What a tool call is told."""
    return engine.evaluate(actions.tool_call(name, "{}", lambda text: text), rates).ruling


def limit(name: str, max_calls: int, window_ms: int) -> dict[str, Any]:
    """A rate-limit rule over everything."""
    rule = {"actions": ["tool:*"], "maxCalls": str(max_calls), "windowMs": str(window_ms)}
    return {"name": name, "rateLimit": rule}


def test_a_flood_of_invented_tools_does_not_refill_the_bucket_of_a_real_one() -> None:
    clock = Clock()
    rates = RateState(clock)
    engine = Engine(bundle(tools=[{"tool": "*", "rateRps": 1, "rateBurst": 1}]).governance)
    assert ask(engine, "publish", rates) is Ruling.ALLOW
    for number in range(MAX_BUCKETS + 10):
        ask(engine, f"invented{number}", rates)
    assert ask(engine, "publish", rates) is Ruling.RATE_LIMITED
    assert ask(engine, "one more", rates) is Ruling.RATE_LIMITED
    clock.now += 2
    assert ask(engine, "publish", rates) is Ruling.ALLOW
    assert ask(engine, "one more", rates) is Ruling.ALLOW


def test_two_rules_of_one_name_do_not_reset_each_other() -> None:
    clock = Clock()
    rates = RateState(clock)
    engine = Engine(bundle(rules=[limit("same", 2, 3_600_000), limit("same", 100, 1000)]).governance)
    found = []
    for _ in range(4):
        found.append(ask(engine, "t", rates))
        clock.now += 2
    assert found == [Ruling.ALLOW, Ruling.ALLOW, Ruling.RATE_LIMITED, Ruling.RATE_LIMITED]


def test_a_new_policy_refills_nothing() -> None:
    rates = RateState(Clock())
    first = Engine(bundle(rules=[limit("r", 1, 60_000)]).governance)
    second = Engine(bundle(version=2, rules=[limit("r", 1, 60_000)]).governance)
    assert ask(first, "t", rates) is Ruling.ALLOW
    assert ask(second, "t", rates) is Ruling.RATE_LIMITED

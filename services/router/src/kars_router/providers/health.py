"""Health of each model's provider, and a budget for retries.

Three failures in a row whose first was at most a minute ago make a model
unhealthy; it is skipped while others are healthy. Any success clears it, and so
does a minute without being called.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kars_router.pipeline.policy import Model

_FAILURES = 3
_WINDOW_S = 60.0


@dataclass(slots=True)
class ModelHealth:
    """What is known about one model."""

    failures: int = 0
    first_failure: float = 0.0
    last_success_unix: float = 0.0
    last_latency_s: float = 0.0
    called: bool = False


class Health:
    """Health by model, on an injected monotonic clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._models: dict[Model, ModelHealth] = {}

    def get(self, model: Model) -> ModelHealth:
        """Return what is known about a model."""
        return self._models.setdefault(model, ModelHealth())

    def succeeded(self, model: Model, latency_s: float) -> None:
        """Note an answer."""
        state = self.get(model)
        state.failures, state.called = 0, True
        state.last_success_unix, state.last_latency_s = time.time(), latency_s

    def failed(self, model: Model) -> None:
        """Note a failure."""
        state = self.get(model)
        now = self._clock()
        if state.failures == 0 or now - state.first_failure > _WINDOW_S:
            state.failures, state.first_failure = 0, now
        state.failures += 1
        state.called = True

    def healthy(self, model: Model) -> bool:
        """Tell whether a model should be tried before others."""
        state = self._models.get(model)
        if state is None or state.failures < _FAILURES:
            return True
        return self._clock() - state.first_failure > _WINDOW_S

    def order(self, models: Sequence[Model]) -> list[Model]:
        """Return the models to try: the healthy ones, or the first when none is."""
        healthy = [model for model in models if self.healthy(model)]
        return healthy or list(models[:1])


class RetryBudget:
    """Allows retries for a tenth of the calls, with a small reserve: no stampede when everything fails."""

    def __init__(self, ratio: float = 0.1, reserve: float = 10.0) -> None:
        self._ratio = ratio
        self._reserve = reserve
        self._tokens = reserve

    def called(self) -> None:
        """Note a first try."""
        self._tokens = min(self._reserve, self._tokens + self._ratio)

    def take(self) -> bool:
        """Take the right to one retry."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

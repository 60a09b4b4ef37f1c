"""Pytest fixtures for both test folders of the router; their conftests import them by name."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

from kars_router_testkit.provider import FakeProvider
from kars_router_testkit.router import RouterProcess


class StartRouter(Protocol):
    """Starts a router; arguments as of RouterProcess, ended with the test."""

    def __call__(self, **options: Any) -> RouterProcess:  # noqa: ANN401 - RouterProcess checks them
        """Start it and wait until it answers."""


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    """A scripted provider named `main`."""
    with FakeProvider() as running:
        yield running


@pytest.fixture
def start_router(provider: FakeProvider, tmp_path: Path) -> Iterator[StartRouter]:
    """Return a function that starts a router on the provider."""
    with ExitStack() as stack:

        def start(**options: Any) -> RouterProcess:  # noqa: ANN401 - RouterProcess checks them
            options.setdefault("providers", [("main", provider.base_url)])
            options.setdefault("directory", tmp_path / "router")
            options["directory"].mkdir(exist_ok=True)
            return stack.enter_context(RouterProcess(**options))

        yield start


@pytest.fixture
def router(start_router: StartRouter) -> RouterProcess:
    """A router whose policy allows everything."""
    return start_router()

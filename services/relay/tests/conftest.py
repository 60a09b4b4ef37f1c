"""Fixtures of these tests."""

from collections.abc import Iterator

import pytest
from kars_relay_testkit.house import House, make_house


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One relay process for the tests of a module."""
    yield from make_house(tmp_path_factory.mktemp("relay"))

"""One stand for all modules that leave it as it was: an open gateway in front of the sample agent."""

from collections.abc import Iterator

import pytest
from kars_a2a_gateway_testkit.stand import Stand


@pytest.fixture(scope="session")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    stand = Stand(tmp_path_factory.mktemp("stand"))
    try:
        stand.start()
        yield stand
    finally:
        stand.stop()

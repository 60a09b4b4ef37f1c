"""The door's share of the process's descriptors."""

from typing import cast

import pytest
from kars_router.api.app import DoorApp
from kars_router.api.protocol import MAX_CONNECTIONS, DoorProtocol
from kars_router.api.server import DoorServer


async def nobody(*_: object) -> None:
    """An application that is never asked."""


@pytest.mark.parametrize(
    ("open_files", "callers"), [(200, 100), (4096, MAX_CONNECTIONS), (1 << 62, MAX_CONNECTIONS)]
)
def test_callers_get_at_most_half_of_the_descriptors(open_files: int, callers: int) -> None:
    server = DoorServer(cast("DoorApp", nobody), drain_s=1, request_timeout_s=1, open_files=open_files)
    protocol = cast("type[DoorProtocol]", server.config.http)
    assert protocol.max_connections == callers

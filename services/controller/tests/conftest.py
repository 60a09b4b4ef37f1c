"""What holds for every test of the controller: no status is written that the published schema would lose."""

from collections.abc import Mapping
from typing import Any

import pytest
from kars_controller.api_types import kind_named
from kars_controller.resources import Document, ResourceKey, ResourceStore


@pytest.fixture(autouse=True)
def _statuses_fit_their_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a reconciler writes a status field that an API server would prune or refuse."""
    written = ResourceStore.update_status

    def checked(store: ResourceStore, key: ResourceKey, uid: str, status: Mapping[str, Any]) -> Document:
        kind = kind_named(key.kind)
        assert kind is not None
        kind.status.model_validate(dict(status))
        return written(store, key, uid, status)

    monkeypatch.setattr(ResourceStore, "update_status", checked)

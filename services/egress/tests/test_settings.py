"""Settings that would open something are refused at start, by name."""

from pathlib import Path

import pytest
from kars_common.errors import InvalidInputError
from kars_common.settings import load
from kars_egress.settings import EgressSettings

BASE = {"STATE_DIR": "/tmp/x", "SVID_DIR": "/tmp/x", "ENVOY_SVID_DIR": "/tmp/x", "RESOLVER": "10.0.0.10:53"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in BASE.items():
        monkeypatch.setenv(f"KARS_EGRESS_{name}", value)
    return monkeypatch


def test_defaults(environment: pytest.MonkeyPatch) -> None:
    settings = load(EgressSettings)
    assert settings.resolver_address() == ("10.0.0.10", 53)
    assert settings.gateway() is None
    assert settings.feeds_file is None
    assert (settings.max_approval_s, settings.max_learning_s) == (86_400, 14_400)
    assert settings.state_dir == Path("/tmp/x")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RESOLVER", "dns.example:53"),
        ("RESOLVER", "10.0.0.10"),
        ("RESOLVER", "10.0.0.10:0"),
        ("GATEWAY_ADDRESS", "everywhere:1"),
        ("MAX_APPROVAL_S", "0"),
        ("MAX_LEARNING_S", "9999999"),
        ("FEEDS_INTERVAL_S", "1"),
        ("EGRESS_MODE", "learn"),
    ],
)
def test_what_is_wrong_is_named(environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    environment.setenv(f"KARS_EGRESS_{name}", value)
    with pytest.raises(InvalidInputError) as refused:
        load(EgressSettings)
    assert refused.value.reason == "settings_invalid"

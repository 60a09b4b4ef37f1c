"""Settings: what is in force when nothing is said."""

from pathlib import Path

import pytest
from kars_controller.settings import ControllerSettings


def test_defaults_are_what_we_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KARS_CONTROLLER_STATE_DIR", "/s/kars")
    found = ControllerSettings()
    assert found.model_dump() == {
        "log_level": "INFO",
        "otlp_endpoint": None,
        "state_dir": Path("/s/kars"),
        "address": "127.0.0.1:0",
        "bootstrap_address": "127.0.0.1:0",
        "trust_domain": "kars.local",
        "platform": "local",
        "operator": None,
        "operator_lifetime_s": 43200,
        "join_token_lifetime_s": 600,
        "providers_file": None,
        "checkout_dir": None,
        "runtime_pydantic_ai": None,
        "runtime_openai_agents": None,
        "relay_endpoint": None,
        "mesh_federation_file": None,
        "mesh_federation_address": None,
        "mesh_statement_key_days": 90,
        "byo_strict_mode": False,
        "drain_s": 5.0,
    }
    assert found.providers_path == Path("/s/kars/providers.json")
    assert found.code_dir == Path("/s/kars-code")

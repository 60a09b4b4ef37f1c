"""Settings: from the environment only, misspelt ones refused by name, values never shown."""

import pytest
from kars_common.errors import InvalidInputError
from kars_common.settings import ServiceSettings, load, service_config
from pydantic import Field, SecretStr


class Settings(ServiceSettings):
    model_config = service_config("KARS_TESTED_")

    port: int = Field(default=8443, ge=1, le=65535)
    password: SecretStr | None = None


def test_defaults_are_pinned() -> None:
    assert load(Settings).model_dump() == {
        "log_level": "INFO",
        "otlp_endpoint": None,
        "port": 8443,
        "password": None,
    }


def test_environment_is_read_and_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KARS_TESTED_PORT", "7000")
    monkeypatch.setenv("KARS_TESTED_LOG_LEVEL", "debug")
    settings = load(Settings)
    assert (settings.port, settings.log_level) == (7000, "debug")


def test_misspelt_setting_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KARS_TESTED_PROT", "7000")
    with pytest.raises(InvalidInputError) as caught:
        load(Settings)
    assert caught.value.reason == "settings_invalid"
    assert [v.field for v in caught.value.violations] == ["KARS_TESTED_PROT"]


def test_all_wrong_settings_are_named_at_once_and_no_value_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KARS_TESTED_PORT", "hunter2")
    monkeypatch.setenv("KARS_TESTED_LOG_LEVEL", "hunter3")
    with pytest.raises(InvalidInputError) as caught:
        load(Settings)
    assert {v.field for v in caught.value.violations} == {"KARS_TESTED_PORT", "KARS_TESTED_LOG_LEVEL"}
    assert "hunter" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_variables_of_others_are_none_of_our_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KARS_OTHER_PORT", "x")
    load(Settings)


def test_settings_cannot_be_changed_after_start() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(Settings).port = 1

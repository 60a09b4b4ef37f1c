"""Settings of a service: typed, from the environment only, wrong ones refused at start by name.

    class RouterSettings(ServiceSettings):
        model_config = service_config("KARS_ROUTER_")
        namespace: str

    settings = load(RouterSettings)

A variable with the service's prefix that no field claims is an error: a misspelt limit must not
silently be no limit.
"""

import os
from typing import TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from kars_common.errors import FieldViolation, InvalidInputError

_Settings = TypeVar("_Settings", bound="ServiceSettings")


def service_config(prefix: str) -> SettingsConfigDict:
    """Return the model configuration of a service whose variables begin with `prefix`."""
    return SettingsConfigDict(env_prefix=prefix, frozen=True, extra="forbid", env_ignore_empty=True)


class ServiceSettings(BaseSettings):
    """What every service can be told. Subclass, set `model_config`, add fields with docstrings."""

    model_config = service_config("KARS_")

    log_level: str = Field(default="INFO", pattern=r"^(?i:debug|info|warning|error)$")
    """Lowest level that is logged."""

    otlp_endpoint: str | None = None
    """URL of an OTLP/gRPC collector for traces; None turns tracing off."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  # signature is pydantic-settings'
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # no dotenv: the environment only
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # secrets are files named by a field
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments, then the environment; nothing else."""
        return init_settings, env_settings


def load(settings: type[_Settings]) -> _Settings:
    """Read and validate settings; the only place that looks at the environment.

    Raises:
        InvalidInputError: `settings_invalid` with one violation for each wrong or unknown variable. Values
            are left out: they may be secrets.
    """
    prefix = str(settings.model_config.get("env_prefix", ""))
    violations = _unknown(settings, prefix)
    try:
        loaded = settings()
    except ValidationError as exc:
        violations += [
            FieldViolation(prefix + "__".join(str(part) for part in error["loc"]).upper(), error["msg"])
            for error in exc.errors(include_input=False, include_url=False)
        ]
        raise _refusal(violations) from None  # the cause would print the values
    if violations:
        raise _refusal(violations)
    return loaded


def _unknown(settings: type[ServiceSettings], prefix: str) -> list[FieldViolation]:
    known = {(prefix + name).upper() for name in settings.model_fields}
    return [
        FieldViolation(name, "no such setting")
        for name in sorted(os.environ)
        if name.upper().startswith(prefix) and name.upper() not in known
    ]


def _refusal(violations: list[FieldViolation]) -> InvalidInputError:
    text = "; ".join(f"{v.field}: {v.description}" for v in violations)
    return InvalidInputError("settings_invalid", f"settings are wrong: {text}", violations=violations)

"""What the published schema (the CRD) says beside pydantic's own: patterns of validators, and rules in CEL.

A rule is written once, as the API server evaluates it, beside the model that it is about. On the local
platform `cel` evaluates the same text, so that no rule holds on one platform only.
"""

from dataclasses import dataclass
from typing import Any

from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

RULES_KEYWORD = "x-kubernetes-validations"
LABEL_PATTERN = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"
SUBDOMAIN_PATTERN = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$"
NOT_BLANK_PATTERN = r"\S"
HTTPS_PATTERN = r"^https://"


@dataclass(frozen=True, slots=True)
class CelRule:
    """One rule of an object: `rule` over `self` (and `oldSelf`) must hold, else `message` is the answer.

    A rule that names `oldSelf` is a transition rule: it is asked on update only, unless `on_create`, where
    `oldSelf` is an optional without a value on create.
    """

    rule: str
    message: str
    field: str = ""
    """The field to blame, from the object on, such as `.monthlyTokens`; empty: the object itself."""
    on_create: bool = False

    @property
    def is_transition(self) -> bool:
        """Tell whether the rule compares with what was stored."""
        return "oldSelf" in self.rule

    def to_schema(self) -> dict[str, Any]:
        """Return the rule as an entry of `x-kubernetes-validations`."""
        entry: dict[str, Any] = {"rule": self.rule, "message": self.message}
        if self.field:
            entry["fieldPath"] = self.field
        if self.on_create:
            entry["optionalOldSelf"] = True
        return entry


def immutable(message: str) -> CelRule:
    """Return the rule of an object that no update may change."""
    return CelRule("self == oldSelf", message)


class Published:
    """Annotates a type with schema keywords that say what its validator checks in Python.

    With `instead`, the keywords replace what pydantic would say.
    """

    def __init__(
        self, *, instead: bool = False, **keywords: str | int | bool | tuple[str, ...] | dict[str, Any]
    ) -> None:
        self._instead = instead
        # Keywords of the schema have dashes, which Python's have not.
        self._keywords = {
            name.replace("__", "-"): list(value) if isinstance(value, tuple) else value
            for name, value in keywords.items()
        }

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return pydantic's schema with ours."""
        given = {} if self._instead else handler(core_schema)
        return {**given, **self._keywords}


def beside_bundle(*fields: str) -> tuple[CelRule, ...]:
    """Return the rules of a spec whose content is either in these fields or in a signed bundle."""
    return tuple(
        CelRule(
            f"!has(self.bundleRef) || !has(self.{name})",
            "not allowed beside spec.bundleRef; keep one of them",
            f".{name}",
        )
        for name in fields
    )

"""What every kind shares: the strict model, references, and what a kind tells the registry.

Field names on the wire are lowerCamelCase. Nothing is coerced and nothing unknown is let through: a
field that we do not understand may be a control that somebody relies on.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from kars_controller.api_types.published import (
    NOT_BLANK_PATTERN,
    RULES_KEYWORD,
    SUBDOMAIN_PATTERN,
    CelRule,
    Published,
)
from kars_controller.raw import Raw

API_VERSION = "kars.azure.com/v1alpha1"
SYSTEM_NAMESPACE = "kars-system"
RESERVED_NAMESPACES = ("svc",)
"""Services watch their own policy under these names."""
MAX_INT64 = 2**63 - 1

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_DIGEST = re.compile(r"sha(256|384|512):[a-f0-9]+")


class ApiModel(BaseModel):
    """One object of an API document."""

    model_config = ConfigDict(
        extra="forbid",
        alias_generator=to_camel,
        strict=True,
        frozen=True,
        validate_default=False,
        # What stands under a field is its description for `kubectl explain` and the reference.
        use_attribute_docstrings=True,
    )

    cel: ClassVar[tuple[CelRule, ...]] = ()
    """Rules across the fields of this object."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Add the rules, and the defaults that are made by a factory, which pydantic leaves out."""
        reference = handler(core_schema)
        schema = handler.resolve_ref_schema(reference)
        for info in cls.model_fields.values():
            if info.default_factory is not None:
                name = str(info.alias)
                schema["properties"][name]["default"] = info.get_default(call_default_factory=True)
        if cls.cel:
            schema[RULES_KEYWORD] = [rule.to_schema() for rule in cls.cel]
        return reference


def is_label(text: str, max_length: int = 63) -> bool:
    """Tell whether text is a DNS-1123 label."""
    return len(text) <= max_length and _LABEL.fullmatch(text) is not None


def is_subdomain(text: str) -> bool:
    """Tell whether text is a DNS-1123 subdomain."""
    return len(text) <= 253 and _SUBDOMAIN.fullmatch(text) is not None


def _subdomain(text: str) -> str:
    if not is_subdomain(text):
        raise PydanticCustomError(
            "name", "allowed: a name in this namespace (a-z 0-9 - ., at most 253 characters, no / or :)"
        )
    return text


def _digest(text: str) -> str:
    if not _DIGEST.fullmatch(text):
        raise PydanticCustomError("digest", "allowed: sha256:, sha384: or sha512: followed by lower-case hex")
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "must not be empty")
    return text


ObjectName = Annotated[str, AfterValidator(_subdomain), Published(pattern=SUBDOMAIN_PATTERN, maxLength=253)]
NonEmpty = Annotated[str, AfterValidator(_not_blank), Published(pattern=NOT_BLANK_PATTERN)]
Count = Annotated[int, Field(ge=0, le=MAX_INT64)]
Count32 = Annotated[int, Field(ge=0, le=2**32 - 1)]


class LocalRef(ApiModel):
    """Names a resource in the same namespace."""

    name: ObjectName
    """Its name."""


class OciRef(ApiModel):
    """A signed artefact in a registry."""

    registry: NonEmpty
    """Host of the registry, with its port if it has one."""
    repository: NonEmpty
    """Path in the registry."""
    digest: Annotated[str, AfterValidator(_digest), Published(pattern=r"^sha(256|384|512):[a-f0-9]+$")]
    """Digest of the manifest; a tag is not enough."""
    artifact_type: NonEmpty
    """Media type that the artefact must have."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One wrong field: where, and what was found against what is allowed."""

    field: str
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A printer column; `json_path` as in a CRD."""

    name: str
    json_path: str
    priority: int = 0
    type: str = "string"


AGE = Column(name="Age", json_path=".metadata.creationTimestamp", type="date")
PHASE = Column(name="Phase", json_path=".status.phase")

CATEGORIES = ("kars",)
"""`kubectl get kars` lists every kind."""

RawSpec = dict[str, Any]
Normalise = Callable[[RawSpec, list[str]], RawSpec]
Rules = Callable[[Mapping[str, Any]], Iterable[Violation]]
Remarks = Callable[[Any], Iterable[str]]


def _as_is(spec: RawSpec, _warnings: list[str]) -> RawSpec:
    return spec


def _none(_spec: Raw) -> Iterable[Any]:
    return ()


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of resource: its names, its schema and what the schema alone cannot say."""

    name: str
    plural: str
    short_names: tuple[str, ...]
    columns: tuple[Column, ...]
    spec: type[ApiModel]
    status: type[ApiModel]
    namespaced: bool = True
    max_name_length: int = 253
    fixed_name: str = ""
    """The only name that a resource of this kind may have; empty: any."""
    not_served: str = ""
    """Why no controller takes this kind yet, and what to do; empty: it is served."""
    normalise: Normalise = field(default=_as_is)
    """Makes a documented short form its full form, before validation; may add warnings."""
    rules: Rules = field(default=_none)
    """Rules across fields, on the raw spec, so that they report beside wrong fields."""
    remarks: Remarks = field(default=_none)
    """Warnings about a valid spec: what it asks for and this build does not enforce."""


def dig(document: Raw, *path: str) -> Raw:
    """Return what lies at a path of a raw document, or None when any step is not there."""
    for step in path:
        if not isinstance(document, Mapping):
            return None
        document = document.get(step)
    return document

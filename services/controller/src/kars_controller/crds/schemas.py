"""Turns a model into a structural schema: what an API server takes, without references and unions.

Knows no kind. A keyword that has no meaning in a structural schema is an error and not dropped: it may be
a limit that somebody relies on.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from kars_controller.api_types.base import MAX_INT64

Schema = dict[str, Any]
_COPIED = (
    "type",
    "format",
    "description",
    "default",
    "enum",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "maxProperties",
    "not",
)
_EXTENSION = "x-kubernetes-"
_TRANSLATED = ("title", "anyOf", "const", "additionalProperties", "properties", "required", "items", "$ref")


class UnpublishableError(Exception):
    """A model says something that a structural schema cannot."""


def of(model: type[BaseModel]) -> Schema:
    """Return the structural schema of a model.

    Raises:
        UnpublishableError: the model has a union, or a keyword that an API server would not check.
    """
    schema = model.model_json_schema(by_alias=True, mode="validation")
    return _structural(schema, schema.get("$defs", {}), model.__name__)


def _structural(schema: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> Schema:
    schema = _resolved(schema, definitions, path)
    unknown = [
        name
        for name in schema
        if name not in (*_COPIED, *_TRANSLATED, "$defs") and not name.startswith(_EXTENSION)
    ]
    if unknown:
        raise UnpublishableError(f"{path}: {', '.join(unknown)} is not known to structural schemas")
    found: Schema = {}
    if "description" in schema:
        found["description"] = " ".join(str(schema["description"]).split())
    found |= {name: schema[name] for name in _COPIED if name in schema and name != "description"}
    if "const" in schema:
        found |= {"type": "string", "enum": [schema["const"]]}
    if found.get("default", ...) is None:
        del found["default"]
    _bound_integers(found)
    if "items" in schema:
        found["items"] = _structural(schema["items"], definitions, f"{path}[]")
    if schema.get("type") == "object":
        found |= _object(schema, definitions, path)
    return found | {name: schema[name] for name in schema if name.startswith(_EXTENSION)}


def _object(schema: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> Schema:
    found: Schema = {}
    properties = {
        name: _structural(item, definitions, f"{path}.{name}")
        for name, item in schema.get("properties", {}).items()
    }
    if properties:
        found["properties"] = properties
    # Defaults are filled in before anything is checked; what has one can be left out.
    required = [name for name in schema.get("required", ()) if "default" not in properties[name]]
    if required:
        found["required"] = required
    others = schema.get("additionalProperties", False)
    if isinstance(others, Mapping):
        found["additionalProperties"] = _structural(others, definitions, f"{path}.*")
    elif others is True:
        found["x-kubernetes-preserve-unknown-fields"] = True
    return found


def _resolved(schema: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> Schema:
    """Put in place what a reference means, and what `X or null` leaves when null means absent."""
    merged = dict(schema)
    while "$ref" in merged or "anyOf" in merged:
        if "$ref" in merged:
            inner = definitions[merged.pop("$ref").removeprefix("#/$defs/")]
        else:
            members = [item for item in merged.pop("anyOf") if item.get("type") != "null"]
            if len(members) != 1:
                raise UnpublishableError(f"{path}: a union of {len(members)} types cannot be published")
            inner = members[0]
        # What stands at the field speaks about the field; it wins over what its type says.
        merged = {**inner, **merged}
    return merged


def _bound_integers(schema: Schema) -> None:
    if schema.get("type") != "integer":
        return
    schema["format"] = "int64"
    if schema.get("maximum") == MAX_INT64:
        # A float, as which bounds are read, is not exact there; the format says the same.
        del schema["maximum"]

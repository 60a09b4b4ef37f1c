"""Turns a kind into its CustomResourceDefinition."""

from typing import Any

import yaml

from kars_controller.api_types.base import API_VERSION, CATEGORIES, Column, Kind
from kars_controller.api_types.published import LABEL_PATTERN
from kars_controller.crds import schemas

GROUP, VERSION = API_VERSION.split("/")
_MAX_NAME = 253
_HEADER = "# Generated from services/controller/src/kars_controller/api_types by `make crds`. Do not edit.\n"


def of(kind: Kind) -> dict[str, Any]:
    """Return the definition."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}", "labels": {"app.kubernetes.io/name": "kars"}},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": list(kind.short_names),
                "categories": list(CATEGORIES),
            },
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [_column(column) for column in kind.columns],
                    "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": _root(kind)},
                }
            ],
        },
    }


def file_name(kind: Kind) -> str:
    """Return the name of the definition's file, in the form that Kubernetes projects use."""
    return f"{GROUP}_{kind.plural}.yaml"


def to_yaml(kind: Kind) -> str:
    """Return the definition as a file."""
    return _HEADER + yaml.dump(
        of(kind), Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True, default_flow_style=False
    )


def _root(kind: Kind) -> dict[str, Any]:
    description = " ".join((kind.spec.__doc__ or "").split())
    return {
        "type": "object",
        "description": f"{kind.name}. {description}",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object", **_name(kind)},
            "spec": schemas.of(kind.spec),
            "status": schemas.of(kind.status),
        },
    }


def _name(kind: Kind) -> dict[str, Any]:
    """Return what the kind asks of its name beyond what every name must be."""
    if kind.fixed_name:
        limits: dict[str, Any] = {"enum": [kind.fixed_name]}
    elif kind.max_name_length < _MAX_NAME:
        limits = {"maxLength": kind.max_name_length, "pattern": LABEL_PATTERN}
    else:
        return {}
    return {"properties": {"name": {"type": "string", **limits}}}


def _column(column: Column) -> dict[str, Any]:
    found: dict[str, Any] = {"name": column.name, "type": column.type, "jsonPath": column.json_path}
    if column.priority:
        found["priority"] = column.priority
    return found


class _Dumper(yaml.SafeDumper):
    """Writes each object in full: an anchor would be one more thing to know for who reads the file."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - named by PyYAML
        """Say that nothing is written as an alias."""
        return True

"""The kinds of kars.azure.com/v1alpha1: schemas, defaults, rules and printer columns."""

from kars_controller.api_types.admission import (
    Admitted,
    admit,
    check_change,
    parse_spec,
    refused,
    validate,
)
from kars_controller.api_types.base import API_VERSION, SYSTEM_NAMESPACE, Column, Kind, Violation
from kars_controller.api_types.registry import ALL_KINDS, KINDS, find_kind, kind_named

__all__ = [
    "ALL_KINDS",
    "API_VERSION",
    "KINDS",
    "SYSTEM_NAMESPACE",
    "Admitted",
    "Column",
    "Kind",
    "Violation",
    "admit",
    "check_change",
    "find_kind",
    "kind_named",
    "parse_spec",
    "refused",
    "validate",
]

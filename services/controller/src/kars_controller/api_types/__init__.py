"""The kinds of kars.azure.com/v1alpha1: schemas, defaults, rules and printer columns."""

from kars_controller.api_types.admission import Admitted, admit, parse_spec, refused
from kars_controller.api_types.base import API_VERSION, SYSTEM_NAMESPACE, Column, Kind, Violation
from kars_controller.api_types.registry import KINDS, find_kind, kind_named

__all__ = [
    "API_VERSION",
    "KINDS",
    "SYSTEM_NAMESPACE",
    "Admitted",
    "Column",
    "Kind",
    "Violation",
    "admit",
    "find_kind",
    "kind_named",
    "parse_spec",
    "refused",
]

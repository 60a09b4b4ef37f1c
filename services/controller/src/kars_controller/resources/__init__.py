"""Kubernetes-shaped resources without Kubernetes: versions, generations, finalizers, watch, events."""

from kars_controller.resources.events import EventLog, EventType
from kars_controller.resources.keys import Document, ResourceKey, deleting, generation
from kars_controller.resources.store import Change, ChangeType, Outcome, ResourceStore

__all__ = [
    "Change",
    "ChangeType",
    "Document",
    "EventLog",
    "EventType",
    "Outcome",
    "ResourceKey",
    "ResourceStore",
    "deleting",
    "generation",
]

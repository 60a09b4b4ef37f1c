"""Writes a plan's status and events to the store."""

from kars_controller.reconcile.plan import Plan
from kars_controller.resources import Document, EventLog, ResourceKey, ResourceStore


def record(store: ResourceStore, events: EventLog, document: Document, plan: Plan) -> None:
    """Store the status, if it is new, and the events.

    Raises:
        NotFoundError: `resource_not_found`, the resource is gone or was replaced.
    """
    store.update_status(ResourceKey.of(document), document["metadata"]["uid"], plan.status)
    for event in plan.events:
        events.record(document, event.type, event.reason, event.message)

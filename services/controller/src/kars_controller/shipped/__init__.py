"""Resources that every installation has: read from the package, applied at start, restored when changed.

`kars-default` governs each sandbox that does not name a tool policy. It is part of the product: an edited
or deleted one is put back, so that nobody's sandbox changes its rules by accident. Who wants other rules
writes another ToolPolicy and refers to it.
"""

import logging
from importlib import resources

from kars_common.errors import ConflictError

from kars_controller import api_types
from kars_controller.profiles.loading import load
from kars_controller.resources import Document, ResourceStore

_LOG = logging.getLogger(__name__)
_FILES = ("kars-default.yaml",)


def documents() -> list[Document]:
    """Return the shipped resources, admitted."""
    texts = (resources.files(__package__).joinpath(name).read_text("utf-8") for name in _FILES)
    return [api_types.admit(load(text)).document for text in texts]


def ensure(store: ResourceStore) -> None:
    """Put the shipped resources into the store, unless they are there as shipped."""
    for document in documents():
        try:
            store.apply(document)
        except ConflictError as exc:
            # Somebody deleted it and a finalizer of theirs still runs; who refers to it fails closed.
            _LOG.error("shipped resource not restored", extra={"reason": exc.reason})

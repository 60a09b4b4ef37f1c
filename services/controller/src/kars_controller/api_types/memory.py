"""KarsMemory: which part of which memory store an agent may use."""

from typing import Annotated, ClassVar

from pydantic import Field

from kars_controller.api_types.base import AGE, PHASE, ApiModel, Column, Kind, LocalRef, OciRef
from kars_controller.api_types.published import LABEL_PATTERN, CelRule, beside_bundle
from kars_controller.api_types.status import Digest, NamedObject, Status, Time

_INLINE = ("storeName", "scope", "retentionDays", "deleteOnSandboxDelete", "displayName")


class MemorySpec(ApiModel):
    """The desired memory binding; a sandbox takes it with its own `memoryRef`."""

    sandbox_ref: LocalRef
    """The sandbox that it is meant for."""
    store_name: Annotated[str, Field(min_length=1, max_length=63, pattern=LABEL_PATTERN)] | None = None
    """The memory store."""
    scope: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[A-Za-z0-9_./%+@-]+$")] | None = None
    """The part of the store; what lies outside of it is neither read nor written."""
    retention_days: Annotated[int, Field(ge=1, le=2**32 - 1)] | None = None
    """After how many days an entry is deleted; absent: never."""
    delete_on_sandbox_delete: bool | None = None
    """Whether the scope is emptied with its sandbox; absent: yes."""
    display_name: str | None = None
    """A name for people."""
    bundle_ref: OciRef | None = None
    """A signed binding instead of the fields above."""

    cel: ClassVar[tuple[CelRule, ...]] = (
        *beside_bundle(*_INLINE),
        *(
            CelRule(
                f"has(self.bundleRef) || has(self.{name})",
                "is required unless spec.bundleRef is given",
                f".{name}",
            )
            for name in ("storeName", "scope")
        ),
    )


class MemoryStatus(Status):
    """What was compiled, and what the router enforces."""

    binding_config_map_ref: NamedObject | None = None
    version_hash: Digest | None = None
    compiled_digest: Digest | None = None
    loaded_digest: Digest | None = None
    bundle_ref_digest: Digest | None = None
    last_reconciled_at: Time | None = None


KARS_MEMORY = Kind(
    name="KarsMemory",
    plural="karsmemories",
    short_names=("cmem",),
    spec=MemorySpec,
    status=MemoryStatus,
    columns=(
        Column(name="Sandbox", json_path=".spec.sandboxRef.name"),
        Column(name="Store", json_path=".spec.storeName"),
        Column(name="Scope", json_path=".spec.scope"),
        PHASE,
        AGE,
    ),
    not_served="no router serves a memory store yet; leave it out, agents keep files in /sandbox",
)

"""What the status of every kind has: phase, the generation it is about, and standard conditions."""

from typing import Annotated, Literal

from pydantic import Field

from kars_controller.api_types.base import ApiModel, Count
from kars_controller.api_types.published import Published

Time = Annotated[str, Published(format="date-time")]
Digest = Annotated[str, Field(max_length=256)]


class Condition(ApiModel):
    """One aspect of the resource's state, as Kubernetes tools read it."""

    type: Annotated[str, Field(min_length=1, max_length=316)]
    """What it is about, such as Ready."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, Field(max_length=1024)]
    """One word for programs."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """The same for people."""
    last_transition_time: Time
    """When `status` last changed."""
    observed_generation: Count | None = None
    """The generation of the spec that this was judged by."""


Conditions = Annotated[
    list[Condition], Published(x__kubernetes__list__type="map", x__kubernetes__list__map__keys=("type",))
]


class Status(ApiModel):
    """The observed state."""

    phase: str | None = None
    """One word for people; programs read the conditions."""
    observed_generation: Count | None = None
    """The newest generation that was looked at."""
    conditions: Conditions | None = None
    """Aspects of the state, one of each type."""


class NamedObject(ApiModel):
    """An object that was made for this resource."""

    name: str
    """Its name."""

"""Which skill a message asks for, and whether it may.

A2A has no field for it; callers name a skill in the metadata of the message (or of the request) as `skillId`.
A message that names none is let through, and the agent is told which skills this caller may use.
"""

from a2a.types import AgentCard, SendMessageRequest
from google.protobuf.struct_pb2 import Struct

from kars_a2a_gateway.callers.principals import Principal
from kars_a2a_gateway.errors import A2AError, Kind, invalid
from kars_a2a_gateway.policy.exposures import Exposure

KEY = "skillId"


def check_skill(
    request: SendMessageRequest, card: AgentCard, exposure: Exposure, principal: Principal
) -> str:
    """Return the skill that is asked for; empty for none.

    Raises:
        A2AError: INVALID_PARAMS for two different ones, UNSUPPORTED_OPERATION for one that is not shown,
            PERMISSION_DENIED for one whose own requirements the caller does not meet.
    """
    named = {_named(metadata) for metadata in (request.message.metadata, request.metadata)} - {""}
    if len(named) > 1:
        raise invalid("message and request name different skills", f"message.metadata.{KEY}")
    if not named:
        return ""
    skill = named.pop()
    if skill not in {shown.id for shown in card.skills}:
        raise A2AError(Kind.UNSUPPORTED_OPERATION, "this agent does not offer that skill")
    if skill in exposure.skill_rules and skill not in (principal.skills or ()):
        raise A2AError(
            Kind.PERMISSION_DENIED,
            "this caller may not use that skill",
            metadata={"why": "skill_not_allowed"},
        )
    return skill


def usable(card: AgentCard, exposure: Exposure, principal: Principal) -> frozenset[str]:
    """Return the skills of a card that a caller may use; the agent is told these and no others."""
    allowed = principal.skills or frozenset()
    return frozenset(
        skill.id for skill in card.skills if skill.id not in exposure.skill_rules or skill.id in allowed
    )


def _named(metadata: Struct) -> str:
    value = metadata.fields.get(KEY)
    return value.string_value if value is not None else ""

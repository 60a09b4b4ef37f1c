"""The key of everything that a caller owns."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Owner:
    """One caller of one agent. The agent is also the tenant: the gateway gives each agent exactly one."""

    agent: str
    principal: str

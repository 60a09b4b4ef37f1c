"""Switches that take one control away, so that tests and demos can show that they notice.

Read from KARS_SANDBOX_FAULTS (comma-separated) at start, reported as absent controls, never part of a
plan: only who may change the environment of the controller can use them.
"""

from collections.abc import Mapping
from enum import StrEnum

VARIABLE = "KARS_SANDBOX_FAULTS"


class Fault(StrEnum):
    """A control that can be switched off."""

    NO_NETWORK_NAMESPACE = "no-network-namespace"
    NO_SECCOMP = "no-seccomp"
    NO_LANDLOCK = "no-landlock"
    NO_CGROUP = "no-cgroup"
    NO_QUOTA = "no-quota"


def from_environment(environment: Mapping[str, str]) -> frozenset[Fault]:
    """Return the faults asked for.

    Raises:
        ValueError: an unknown name.
    """
    names = environment.get(VARIABLE, "").split(",")
    return frozenset(Fault(name.strip()) for name in names if name.strip())

"""Fault: no cgroup file system is mounted."""

import sys

_WHERE = ("kars_controller.platforms.local.pod", "kars_controller.platforms.local.doctor")


def _apply() -> None:
    import functools
    from pathlib import Path

    from kars_controller.platforms.local.isolation import cgroups

    cgroups.create = functools.partial(cgroups.create, mount=Path("/nowhere"))


if any(module in sys.orig_argv for module in _WHERE):
    _apply()

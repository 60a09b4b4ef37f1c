"""Fault: the kernel offers no Landlock."""

import sys

_WHERE = ("kars_controller.platforms.local.pod", "kars_controller.platforms.local.doctor")


def _apply() -> None:
    from kars_controller.platforms.local.isolation import landlock

    landlock.abi = lambda: 0


if any(module in sys.orig_argv for module in _WHERE):
    _apply()

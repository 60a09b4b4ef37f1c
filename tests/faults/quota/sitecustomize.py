"""Fault: the host has no tool that makes file systems, so that no workspace can be one of its own."""

import sys

_WHERE = ("kars_controller.platforms.local.pod", "kars_controller.platforms.local.doctor")


def _apply() -> None:
    from kars_controller.platforms.local.isolation import quota

    quota._TOOL_PATH = "/nowhere"


if any(module in sys.orig_argv for module in _WHERE):
    _apply()

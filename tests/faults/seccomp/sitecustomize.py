"""Fault: no system-call filter is installed in any sandbox."""

import sys


def _apply() -> None:
    from kars_controller.platforms.local.isolation.seccomp import installing

    def install(program: bytes) -> None:
        del program

    installing.install = install


if "kars_controller.platforms.local.pod" in sys.orig_argv:
    _apply()

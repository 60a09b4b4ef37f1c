"""Fault: calls leave no record in any router's audit log.

A router has an environment and a root of its own, so its supervisor is changed too: it shows this folder to
the router.
"""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FOLDER = str(Path(__file__).resolve().parent)


def _show_to_router() -> None:
    from kars_controller.platforms.local.isolation import container, rootfs
    from kars_controller.platforms.local.pod import blueprints

    build = blueprints.router

    def router(*args: Any, **kwargs: Any) -> container.Spec:
        spec = build(*args, **kwargs)
        mounts = (*spec.root.read_only, rootfs.Bind(source=_FOLDER, target=_FOLDER))
        return dataclasses.replace(
            spec,
            env={**spec.env, "PYTHONPATH": _FOLDER},
            root=dataclasses.replace(spec.root, read_only=mounts),
        )

    blueprints.router = router


def _forget_calls() -> None:
    from kars_common.audit import AuditLog

    append = AuditLog.append

    def forgetful(
        log: AuditLog,
        type: str,  # noqa: A002 - as in the original
        fields: Mapping[str, object],
        *,
        staged: bool = False,
    ) -> int:
        if type.startswith("call."):
            return max(0, log.size - 1)
        return append(log, type, fields, staged=staged)

    AuditLog.append = forgetful  # type: ignore[method-assign, assignment]  # what a fault is


if "kars_controller.platforms.local.pod" in sys.orig_argv:
    _show_to_router()
if "kars_router" in sys.orig_argv:
    _forget_calls()

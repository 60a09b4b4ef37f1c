"""Cgroup directories that a killed supervisor leaves behind: written down, removed by whoever comes next."""

import contextlib
import json

from kars_controller.platforms.local.isolation import cgroups
from kars_controller.platforms.local.layout import PodDirectory


def remember(directory: PodDirectory, group: cgroups.Group) -> None:
    """Write down what a group consists of.

    Raises:
        OSError: the pod directory cannot be written.
    """
    paths = sorted({str(path) for path in group.directories.values()})
    directory.groups.write_text(json.dumps(paths), encoding="utf-8")


def clear(directory: PodDirectory) -> None:
    """Remove the groups written down, as far as nothing runs in them. Idempotent."""
    with contextlib.suppress(OSError, ValueError):
        for path in json.loads(directory.groups.read_bytes()):
            cgroups.remove_leftover(path)
        directory.groups.unlink()

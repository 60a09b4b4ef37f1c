"""Which runtimes are installed on this machine, and how each is started.

A runtime of the local platform is a virtual environment with the adapter in it. A kind that is not here is
refused by name; nothing is installed on demand.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kars_controller.platforms.base import ReadOnlyMount


@dataclass(frozen=True, kw_only=True)
class InstalledRuntime:
    """One runtime that can be started."""

    argv: tuple[str, ...]
    """The adapter's command, when the resource gives no entrypoint."""
    bin_dir: str
    """Where its commands are, inside the sandbox."""
    mounts: tuple[ReadOnlyMount, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RuntimeCatalog:
    """The installed runtimes by kind."""

    installed: Mapping[str, InstalledRuntime] = field(default_factory=dict)
    base: tuple[ReadOnlyMount, ...] = ()
    """What a sandbox that brings its own command gets of the machine."""

    def find(self, kind: str) -> InstalledRuntime | None:
        """Return the runtime of a kind; None when it is not installed."""
        return self.installed.get(kind)

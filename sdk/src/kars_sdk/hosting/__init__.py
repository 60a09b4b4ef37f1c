"""What every runtime adapter does the same way: find the agent's object, run it, print, serve chat, end.

Standard library and `kars_sdk` only, so that it shares an environment with any framework.
"""

from kars_sdk.hosting.console import Console
from kars_sdk.hosting.direct import CallTool, DirectTools
from kars_sdk.hosting.loading import LoadError, load_object
from kars_sdk.hosting.running import EXIT_REFUSED, Hosted, run

__all__ = [
    "EXIT_REFUSED",
    "CallTool",
    "Console",
    "DirectTools",
    "Hosted",
    "LoadError",
    "load_object",
    "run",
]

"""Which directories an interpreter needs in a container: its prefixes and its whole import path.

Asks the interpreter itself, so that virtual environments, editable installs and relocated builds all
work.
"""

import functools
import json
import subprocess
from pathlib import Path

from kars_common.errors import InvalidInputError

from kars_controller.platforms.base import ReadOnlyMount

_QUESTION = (
    "import json, os, sys; print(json.dumps([sys.prefix, sys.base_prefix, sys.exec_prefix, "
    "os.path.dirname(os.path.realpath(sys.executable)), *sys.path]))"
)
_TIMEOUT_S = 20
_ALWAYS_THERE = Path("/usr")


@functools.lru_cache(maxsize=32)
def python_mounts(interpreter: Path) -> tuple[ReadOnlyMount, ...]:
    """Return the mounts that make an interpreter work at its own path, outermost directories only.

    Runs the interpreter once; the answer is kept for the life of the process.

    Raises:
        InvalidInputError: `interpreter_unusable`.
    """
    try:
        done = subprocess.run(  # noqa: S603  # the interpreter that the operator configured
            [interpreter, "-I", "-c", _QUESTION], capture_output=True, timeout=_TIMEOUT_S, check=True
        )
        found = [Path(entry) for entry in json.loads(done.stdout)]
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise InvalidInputError("interpreter_unusable", f"{interpreter} does not run: {error}") from error
    # The path as given too: a virtual environment's bin directory is usually a link to somewhere else.
    directories = {path for path in (interpreter.parent, *found) if path.is_absolute() and path.exists()}
    return tuple(ReadOnlyMount(source=path, target=str(path)) for path in _outermost(directories))


def _outermost(paths: set[Path]) -> list[Path]:
    kept: list[Path] = []
    for path in sorted(paths):
        if (
            path != _ALWAYS_THERE
            and _ALWAYS_THERE not in path.parents
            and not any(k in path.parents for k in kept)
        ):
            kept.append(path)
    return kept

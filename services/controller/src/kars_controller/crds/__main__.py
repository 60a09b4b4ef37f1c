"""Writes deploy/crds and docs/reference/crds.md, or says what in them is not as the models are.

python -m kars_controller.crds write REPOSITORY
python -m kars_controller.crds check REPOSITORY
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from kars_controller.api_types import ALL_KINDS
from kars_controller.crds import definitions, reference

_FOLDER = Path("deploy/crds")
_REFERENCE = Path("docs/reference/crds.md")


def generated() -> dict[Path, str]:
    """Return every generated file, by its path in the repository."""
    files = {_FOLDER / definitions.file_name(kind): definitions.to_yaml(kind) for kind in ALL_KINDS}
    return {**files, _REFERENCE: reference.page(ALL_KINDS)}


def write(root: Path) -> None:
    """Write the files, and remove definitions of kinds that are gone."""
    for path in stale(root):
        (root / path).unlink(missing_ok=True)
    for path, text in generated().items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")


def stale(root: Path) -> list[Path]:
    """Return the files that are missing, that differ from what the models say, or that no model has."""
    wanted = generated()
    there = {path.relative_to(root) for path in (root / _FOLDER).glob("*.yaml")}
    differing = {
        path
        for path, text in wanted.items()
        if not (root / path).is_file() or (root / path).read_text(encoding="utf-8") != text
    }
    return sorted(differing | (there - wanted.keys()))


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    if len(arguments) != 2 or arguments[0] not in ("write", "check"):
        sys.stderr.write(f"{__doc__}\n")
        return 2
    root = Path(arguments[1])
    if arguments[0] == "write":
        write(root)
        return 0
    differing = stale(root)
    for path in differing:
        sys.stderr.write(f"{path} is not what the models say: run `make crds`\n")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

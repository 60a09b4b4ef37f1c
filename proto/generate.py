"""Generate the Python stubs of every contract into `gen/`.

Runs as hatchling's build hook whenever `kars-proto` is built, editable or not
(`uv sync` does that when a .proto file changed), and by hand as `make proto`.
`gen/` is never committed and never edited.
"""

from __future__ import annotations

import shutil
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from grpc_tools import protoc
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HERE = Path(__file__).resolve().parent


def generate(root: Path = HERE) -> list[Path]:
    """Write stubs for all contracts below `root/kars` and return the contracts.

    Raises:
        SystemExit: protoc refused a contract; its message is on stderr.
    """
    out = root / "gen"
    contracts = sorted((root / "kars").rglob("*.proto"))
    staging = root / "gen.new"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    plugin_dir = Path(sys.executable).parent
    code = protoc.main(
        [
            "protoc",
            f"--plugin=protoc-gen-mypy={plugin_dir / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={plugin_dir / 'protoc-gen-mypy_grpc'}",
            f"--proto_path={root}",
            f"--proto_path={files('grpc_tools') / '_proto'}",
            f"--python_out={staging}",
            f"--grpc_python_out={staging}",
            f"--mypy_out={staging}",
            f"--mypy_grpc_out={staging}",
            *(str(path) for path in contracts),
        ]
    )
    if code != 0:
        raise SystemExit(f"protoc failed with exit code {code}")
    for package in {staging / "kars", *(path.parent for path in staging.rglob("*_pb2.py"))}:
        for folder in (package, *package.relative_to(staging).parents):
            directory = folder if folder.is_absolute() else staging / folder
            if directory != staging:
                (directory / "__init__.py").touch()
    (staging / "kars" / "py.typed").touch()
    shutil.rmtree(out, ignore_errors=True)
    staging.rename(out)
    return contracts


class StubsBuildHook(BuildHookInterface[Any]):
    """Generate the stubs before the wheel (or the editable install) is assembled."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 (hatchling's signature)
        """Hatchling calls this before it collects files."""
        generate(Path(self.root))


if __name__ == "__main__":
    print("\n".join(str(path.relative_to(HERE)) for path in generate()))  # noqa: T201 (a command's output)

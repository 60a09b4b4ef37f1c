"""Options that several commands share, spelled once."""

from pathlib import Path
from typing import Annotated

import typer

from kars_cli.output import DataFormat, Format

Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Namespace.", show_default=True)]
AllNamespaces = Annotated[bool, typer.Option("--all-namespaces", "-A", help="All namespaces.")]
Output = Annotated[Format, typer.Option("--output", "-o", help="How to print.", show_default=True)]
DataOutput = Annotated[DataFormat, typer.Option("--output", "-o", help="How to print.", show_default=True)]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Files = Annotated[
    list[Path],
    typer.Option("--filename", "-f", help="File or folder with manifests; may be given again.", exists=True),
]
Timeout = Annotated[
    float, typer.Option("--timeout", help="Longest wait, in seconds.", min=1, show_default=True)
]
SandboxName = Annotated[str, typer.Argument(metavar="NAME", help="Name of a KarsSandbox.")]

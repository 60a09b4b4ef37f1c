"""The README's table and the program name the same commands."""

import re
from pathlib import Path

import typer
from kars_cli import app, exits
from typer.main import get_command

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def test_readme_names_every_command_and_no_other() -> None:
    known = set(get_command(app.build()).commands)  # type: ignore[attr-defined]  # a group, at run time
    table = README.split("## Inside")[0]
    assert set(re.findall(r"`kars ([a-z0-9]+)", table)) == known


def test_readme_and_help_say_the_same_exit_codes() -> None:
    said = " ".join(README.split("**Exit codes**", 1)[1].split("\n\n", 1)[0].split())
    assert all(part.strip(" .") in said for part in exits.HELP.removeprefix("Exit codes:").split(";"))


def test_every_command_has_help() -> None:
    root = get_command(app.build())
    assert isinstance(root, typer.core.TyperGroup)
    for command in root.commands.values():
        assert command.help, command.name

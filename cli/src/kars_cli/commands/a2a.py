"""`kars a2a card`: show, verify and sign A2A agent cards, from files alone. Nothing is fetched."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from google.protobuf import json_format
from kars_common import agent_cards, files
from kars_common.agent_cards import CardKey
from kars_common.errors import InvalidInputError, KarsError
from rich.markup import escape

from kars_cli import options, output, reporting
from kars_cli.exits import Exit
from kars_cli.output import DataFormat

app = typer.Typer(help="Agents of other organisations (A2A).", no_args_is_help=True)
card_app = typer.Typer(help="Show, verify and sign agent cards.", no_args_is_help=True)
app.add_typer(card_app, name="card")

_MAX_KEYS_BYTES = 256 * 1024

CardFile = Annotated[
    Path, typer.Argument(metavar="CARD", help="File with the card's JSON.", exists=True, dir_okay=False)
]


@card_app.command()
def show(card: CardFile, form: options.DataOutput = DataFormat.TABLE) -> None:
    """Show what a card says, and what of it no signature would cover for everybody."""
    parsed = _read(card)
    if form is not DataFormat.TABLE:
        output.data(json_format.MessageToDict(parsed), form)
        return
    out = output.console()
    out.print(f"[bold]{escape(output.clean(parsed.name))}[/] {escape(output.clean(parsed.version))}")
    output.table(
        ("interface", "version", "url", "tenant"),
        [(i.protocol_binding, i.protocol_version, i.url, i.tenant) for i in parsed.supported_interfaces],
    )
    output.table(("skill", "name"), [(skill.id, skill.name) for skill in parsed.skills])
    headers = [agent_cards.protected_header(signature) for signature in parsed.signatures]
    output.table(
        ("signature", "algorithm", "key set"),
        [(str(h.get("kid", "")), str(h.get("alg", "")), str(h.get("jku", ""))) for h in headers],
    )
    for path in agent_cards.unsafe_parts(parsed):
        out.print(f"[yellow]note[/]: {escape(output.clean(path))} is empty; official clients leave it out")


@card_app.command()
def verify(
    card: CardFile,
    keys: Annotated[
        Path, typer.Option("--keys", help="JWK set (or one JWK) with the keys you trust.", exists=True)
    ],
    form: options.DataOutput = DataFormat.TABLE,
) -> None:
    """Verify a card against keys that you have. Exit code 2 when no signature holds.

    The key set that a card itself names is never fetched: whoever forges a card writes that address too.
    """
    trusted = _keys(keys)
    try:
        verdict = agent_cards.verify_card(_read(card), trusted, datetime.now(UTC))
    except KarsError as error:
        if form is DataFormat.TABLE:
            reporting.show(error, reporting.errors_console())
        else:
            output.data({"ok": False, "reason": error.reason, "message": error.message}, form)
        raise typer.Exit(Exit.USAGE) from None
    if form is DataFormat.TABLE:
        output.console().print(f"[green]verified[/]: signed with {escape(verdict.kid)} ({verdict.algorithm})")
    else:
        found = {"ok": True, "kid": verdict.kid, "algorithm": verdict.algorithm, "form": verdict.form.value}
        output.data(found, form)


@card_app.command()
def sign(
    card: CardFile,
    key: Annotated[
        Path, typer.Option("--key", help="Private key, PEM: Ed25519 or P-256, readable by you alone.")
    ],
    kid: Annotated[str, typer.Option("--kid", help="Name of the key; its thumbprint when left out.")] = "",
    jku: Annotated[str, typer.Option("--jku", help="https URL of the key set that holds it.")] = "",
    keep: Annotated[bool, typer.Option("--keep", help="Keep the signatures that are there.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Write here instead of printing.")] = None,
) -> None:
    """Sign a card; print it, or write it to a file."""
    if jku and not jku.startswith("https://"):
        _fail(InvalidInputError("jku_invalid", "--jku must be an https URL"))
    parsed = _read(card)
    try:
        signed = agent_cards.sign_card(parsed, agent_cards.load_signing_key(key, kid=kid), jku=jku, keep=keep)
    except KarsError as error:
        _fail(error)
    text = json.dumps(json_format.MessageToDict(signed), indent=2, ensure_ascii=False) + "\n"
    if out is None:
        output.raw(text)
        return
    files.replace(out, text.encode(), mode=0o644)


def _read(path: Path) -> Any:  # noqa: ANN401  # an AgentCard; its type is the extra's
    try:
        with path.open("rb") as file:
            return agent_cards.parse_card(file.read(agent_cards.MAX_CARD_BYTES + 1))
    except KarsError as error:
        _fail(error)


def _keys(path: Path) -> list[CardKey]:
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(_MAX_KEYS_BYTES))
        entries = document.get("keys", [document])
        return [CardKey.from_jwk(json.dumps(entry)) for entry in entries]
    except KarsError as error:
        _fail(error)
    except (ValueError, TypeError, AttributeError):
        _fail(InvalidInputError("card_key_invalid", f"{path} is neither a JWK set nor a JWK"))


def _fail(error: KarsError) -> NoReturn:
    reporting.show(error, reporting.errors_console())
    raise typer.Exit(Exit.USAGE)

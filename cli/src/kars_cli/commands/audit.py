"""`kars audit`: read a log, prove a record, verify a whole log from its files alone."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from kars.audit.v1 import audit_pb2
from kars_common.audit import VerifyReport, verify_directory
from rich.markup import escape

from kars_cli import audit_keys, options, output, stubs
from kars_cli.exits import Exit
from kars_cli.output import DataFormat
from kars_cli.session import Session, command

if TYPE_CHECKING:
    from kars.audit.v1.audit_pb2_grpc import AuditLogAsyncStub

app = typer.Typer(help="Read, prove and verify audit logs.", no_args_is_help=True)

_COMMON = ("v", "seq", "time", "origin", "type", "prev")

KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key", help="File with the log's verifier key (<name>+<id>+<key>).", exists=True, dir_okay=False
    ),
]
Log = Annotated[
    str | None,
    typer.Argument(
        metavar="[SANDBOX]", help="Name of a KarsSandbox; the controller's own log when left out."
    ),
]


@app.command()
def tail(
    sandbox: Log = None,
    namespace: options.Namespace = "default",
    lines: Annotated[int, typer.Option("--tail", "-l", help="Records from the end.", min=1, max=10_000)] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing.")] = False,
    kind: Annotated[str, typer.Option("--type", help="Only types that begin so, e.g. call.denied.")] = "",
    form: Annotated[
        DataFormat, typer.Option("--output", "-o", help="How to print; json is one record a line.")
    ] = DataFormat.TABLE,
) -> None:
    """Print the newest records."""
    _tail(sandbox, namespace, lines, kind, form, follow=follow)


@app.command()
def verify(
    directory: Annotated[
        Path, typer.Argument(help="The log's folder, or a copy.", exists=True, file_okay=False)
    ],
    key: KeyFile = None,
    witness_key: Annotated[
        Path | None, typer.Option("--witness-key", help="File with the witness's verifier key.", exists=True)
    ] = None,
    form: options.DataOutput = DataFormat.TABLE,
) -> None:
    """Verify a log offline: every record, hash, and signed head. Exit code 2 when it was changed.

    Without --key the key beside the log is taken: that shows damage, but not a log replaced as a whole.
    """
    public_key, pinned = audit_keys.log_key(key, directory)
    witness = audit_keys.read(witness_key) if witness_key is not None else None
    report = verify_directory(
        directory,
        public_key.key,
        witness.key if witness else None,
        witness_name=witness.name if witness else None,
    )
    if form is not DataFormat.TABLE:
        output.data(_plain(report, pinned=pinned), form)
    else:
        _print_report(report, pinned=pinned)
    if not report.ok:
        raise typer.Exit(Exit.USAGE)


@app.command()
def proof(
    seq: Annotated[int, typer.Argument(help="Sequence number of the record.", min=0)],
    sandbox: Log = None,
    namespace: options.Namespace = "default",
    key: KeyFile = None,
    form: options.DataOutput = DataFormat.TABLE,
) -> None:
    """Fetch a record with its inclusion proof and verify it here. Exit code 2 when it does not hold."""
    answer = _proof(sandbox, namespace, seq)
    public_key = audit_keys.read(key) if key is not None else audit_keys.local_key(sandbox, namespace)
    proven = audit_keys.check_inclusion(answer, seq, public_key)
    if form is not DataFormat.TABLE:
        output.data(proven, form)
    else:
        out = output.console()
        print(output.clean(answer.record.decode("utf-8", "replace")))
        if proven["included"]:
            out.print(
                f"[green]proved[/]: record {seq} is in the tree of {proven['treeSize']} records "
                f"that {escape(proven['origin'])} signed (root {proven['rootHash'][:16]}…, "
                f"{len(proven['hashes'])} hashes)",
                soft_wrap=True,
            )
        else:
            out.print(f"[bold red]not proved[/]: {escape(proven['problem'])}")
    if not proven["included"]:
        raise typer.Exit(Exit.USAGE)


@command
async def _tail(
    sandbox: str | None, namespace: str, lines: int, kind: str, form: DataFormat, *, follow: bool
) -> None:
    async with Session.open() as session:
        stub = await _log(session, sandbox, namespace)
        async for batch in stub.TailRecords(audit_pb2.TailRecordsRequest(start_seq=-lines, follow=follow)):
            for line in batch.records:
                record = json.loads(line)
                if str(record.get("type", "")).startswith(kind):
                    _print_record(record, line, form)


@command
async def _proof(sandbox: str | None, namespace: str, seq: int) -> audit_pb2.GetInclusionProofResponse:
    async with Session.open() as session:
        stub = await _log(session, sandbox, namespace)
        return await stub.GetInclusionProof(audit_pb2.GetInclusionProofRequest(seq=seq))


async def _log(session: Session, sandbox: str | None, namespace: str) -> "AuditLogAsyncStub":
    if sandbox is None:
        return stubs.controller_audit(session)
    return stubs.audit(await session.router(namespace, sandbox))


def _print_record(record: dict[str, Any], line: bytes, form: DataFormat) -> None:
    if form is DataFormat.JSON:
        output.raw(line.decode("utf-8", "replace").rstrip("\n") + "\n")
        return
    if form is DataFormat.YAML:
        print("---")
        output.data(record, form)
        return
    fields = {name: value for name, value in record.items() if name not in _COMMON}
    said = " ".join(f"{name}={_short(value)}" for name, value in fields.items())
    print(
        output.clean(f"{record.get('seq'):>6}  {record.get('time')}  {record.get('type'):<18} {said}"),
        flush=True,
    )


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:79]}…"


def _plain(report: VerifyReport, *, pinned: bool) -> dict[str, Any]:
    finding = report.finding
    return {
        "ok": report.ok,
        "origin": report.origin,
        "firstSeq": report.first_seq,
        "records": report.size,
        "signedRecords": report.signed_size,
        "witnessedRecords": report.witnessed_size,
        "signedHeads": report.heads,
        "keyPinned": pinned,
        "finding": None
        if finding is None
        else {
            "problem": str(finding.problem),
            "file": finding.file,
            "line": finding.line,
            "offset": finding.offset,
            "seq": finding.seq,
            "detail": finding.detail,
        },
    }


def _print_report(report: VerifyReport, *, pinned: bool) -> None:
    out = output.console()
    out.print(
        f"{escape(report.origin)}: {report.size} records, {report.signed_size} signed, "
        f"{report.witnessed_size} witnessed, {report.heads} signed heads",
        soft_wrap=True,
    )
    if not pinned:
        out.print("[yellow]note[/]: the key came from the log's own folder; give --key to pin it")
    if report.finding is None:
        out.print("[green]verified[/]: nothing was changed, left out or cut off")
    else:
        out.print(f"[bold red]tampered[/]: {escape(str(report.finding))}", soft_wrap=True)

"""The part of `make bench-mesh` that measures cryptography: CPU time for each message and each session.

Subjects are interleaved in every round, and ratios are taken within a round, so that a slow minute hits all
alike. Every message is decrypted and compared; a wrong one fails the run.
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence

from rich.table import Table

from tests.bench.mesh import peers
from tests.bench.mesh.parts import Figures, Part, Target

SIZES = (256, 4096, 65536, 1048576)
_BUDGET_BYTES = 24 * 1024 * 1024
_STARTS, _TURNS = 60, 200
Rounds = dict[str, list[float]]


def measure(rounds: int) -> Part:
    """Run everything; takes about ten seconds a round."""
    found: Rounds = {}
    for number in range(rounds):
        turned = number % len(peers.SUBJECTS)  # who comes first pays for fresh memory: each in its turn
        subjects = peers.SUBJECTS[turned:] + peers.SUBJECTS[:turned]
        for size in SIZES:
            _messages(found, subjects, size)
        _turns(found, subjects)
        _starts(found, subjects)
    return Part(figures=_figures(found), targets=TARGETS, tables=[_table(found), _sessions(found)])


TARGETS = (
    Target(figure="encrypt_vs_recommended", text="times faster than recommended, encrypt 256 B", bound=4.0),
    Target(figure="encrypt_vs_vodozemac", text="times faster than vodozemac, encrypt 256 B", bound=1.0),
)


def _messages(found: Rounds, subjects: Sequence[peers.Subject], size: int) -> None:
    count = max(12, min(2000, _BUDGET_BYTES // (size + 4096)))
    plaintexts = [os.urandom(size) for _ in range(min(count, 8))]
    for subject in subjects:
        pair = subject.pair()
        for text in plaintexts:  # warm up
            pair.decrypt(pair.encrypt(text))
        sent = [plaintexts[number % len(plaintexts)] for number in range(count)]
        begin = time.process_time()
        messages = [pair.encrypt(text) for text in sent]
        middle = time.process_time()
        received = [pair.decrypt(message) for message in messages]
        end = time.process_time()
        if received != sent:
            raise RuntimeError(f"{subject.name} decrypted something else")
        _note(found, f"{subject.name}_encrypt_{size}_us", (middle - begin) / count * 1e6)
        _note(found, f"{subject.name}_decrypt_{size}_us", (end - middle) / count * 1e6)


def _turns(found: Rounds, subjects: Sequence[peers.Subject]) -> None:
    text = os.urandom(256)
    for subject in subjects:
        pair = subject.pair()

        def turn(pair: peers.Pair = pair) -> None:
            pair.decrypt(pair.encrypt(text))
            pair.read(pair.reply(text))

        _note(found, f"{subject.name}_turn_us", _per_call(turn, _TURNS))


def _starts(found: Rounds, subjects: Sequence[peers.Subject]) -> None:
    for subject in subjects:
        if subject.start is not None:
            _note(found, f"{subject.name}_session_us", _per_call(subject.start, _STARTS))


def _per_call(work: Callable[[], None], times: int) -> float:
    work()
    begin = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - begin) / times * 1e6


def _note(found: Rounds, name: str, value: float) -> None:
    found.setdefault(name, []).append(value)


def _ratio(found: Rounds, one: str, other: str) -> float:
    return statistics.median(a / b for a, b in zip(found[one], found[other], strict=True))


def _figures(found: Rounds) -> Figures:
    figures: Figures = {
        "encrypt_vs_recommended": round(
            _ratio(found, "recommended_encrypt_256_us", "kars_encrypt_256_us"), 2
        ),
        "encrypt_vs_vodozemac": round(_ratio(found, "vodozemac_encrypt_256_us", "kars_encrypt_256_us"), 2),
        "decrypt_vs_recommended": round(
            _ratio(found, "recommended_decrypt_256_us", "kars_decrypt_256_us"), 2
        ),
        "decrypt_vs_vodozemac": round(_ratio(found, "vodozemac_decrypt_256_us", "kars_decrypt_256_us"), 2),
        "sessions_per_s": round(1e6 / statistics.median(found["kars_session_us"]), 1),
        "sessions_vs_vodozemac": round(_ratio(found, "vodozemac_session_us", "kars_session_us"), 2),
    }
    return figures | {name: round(statistics.median(values), 2) for name, values in found.items()}


def _table(found: Rounds) -> Table:
    table = Table(title="CPU microseconds a message (times the AES-256-GCM floor)", title_justify="left")
    table.add_column("")
    for subject in peers.SUBJECTS:
        table.add_column(subject.name, justify="right")
    for direction in ("encrypt", "decrypt"):
        for size in SIZES:
            row = f"{direction}_{size}_us"
            values = [statistics.median(found[f"{subject.name}_{row}"]) for subject in peers.SUBJECTS]
            label = f"{direction} {size // 1024} KiB" if size >= 1024 else f"{direction} {size} B"
            table.add_row(label, *(f"{value:.1f} ({value / values[0]:.1f})" for value in values))
    return table


def _sessions(found: Rounds) -> Table:
    table = Table(title="Conversations, CPU microseconds, both ends", title_justify="left")
    for column in ("", "there and back, 256 B, two turns", "new session", "sessions a second"):
        table.add_column(column, justify="right" if column else "left")
    for subject in peers.SUBJECTS:
        turn = statistics.median(found[f"{subject.name}_turn_us"])
        start = found.get(f"{subject.name}_session_us")
        median = statistics.median(start) if start else None
        table.add_row(
            subject.name,
            f"{turn:.0f}",
            "" if median is None else f"{median:.0f}",
            "" if median is None else f"{1e6 / median:.0f}",
        )
    return table

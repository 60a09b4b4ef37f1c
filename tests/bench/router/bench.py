"""One run from start to table: starts upstream and subjects, waits for them, measures, reports.

Order: environments, then the empty network (before any thread or child), then
processes, then rounds, then memory, then the report.
"""

import contextlib
import fcntl
import functools
import os
import platform
import shutil
import sys
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from tests.bench.router import environments, isolation, probe, processes, procfs, report, rounds, subjects
from tests.bench.router.kars_subject import Kars
from tests.bench.router.subjects import Running, Site, Subject

_ALL: tuple[Subject, ...] = (subjects.Direct(), subjects.Envoy(), subjects.LiteLLM(), Kars())
NAMES = tuple(subject.name for subject in _ALL)
_READY_S = 90.0
_FOLDER = environments.ROOT / "build" / "bench"


def run(names: Sequence[str], count: int) -> None:
    """Compare the named subjects over so many rounds.

    Raises:
        InstallError: something needed cannot be installed.
        NotReadyError: a process did not become ready.
        MeasureError: a load could not be put on, or met errors.
    """
    console = Console(width=None if os.isatty(1) else 140)
    chosen = [subject for subject in _ALL if subject.name in names]
    for name, install in (("envoy", environments.ensure_envoy), ("litellm", environments.ensure_peer)):
        if name in names:  # now, while there is a network
            console.print(f"installed: {install().relative_to(environments.ROOT)}")
    with _alone(console):
        _compare(console, chosen, count)


def _compare(console: Console, chosen: Sequence[Subject], count: int) -> None:
    offline = isolation.leave_the_network()
    cores = isolation.cores()
    console.print(cores.describe())
    console.print(
        "network: none but loopback" if offline is None else f"network: the machine's own ({offline})"
    )
    with contextlib.ExitStack() as stack:
        upstream, port = _start_upstream(stack, cores)
        running = _start(stack, chosen, cores, port)
        for name, each in running.items():
            _await(name, each)
            console.print(f"ready: {name}")
        console.print("warming up")
        rounds.warm_up(running, upstream.pid, cores)
        progress = functools.partial(console.print, highlight=False)
        results = rounds.run(running, count=count, upstream_pid=upstream.pid, cores=cores, progress=progress)
        memories = {name: procfs.memory(each.process.pid) for name, each in running.items() if each.process}
    found = report.figures(results, memories, _facts(cores, offline, count))
    report.write(_FOLDER / "router.json", found)
    report.show(console, results, memories, {subject.name: subject.title for subject in chosen}, found)
    console.print("figures: build/bench/router.json")


def hold(names: Sequence[str]) -> None:
    """Start upstream and subjects in the machine's own network and wait for end of input: for profiling.

    Raises:
        InstallError: something needed cannot be installed.
        NotReadyError: a process did not become ready.
    """
    cores = isolation.cores()
    with _alone(Console(stderr=True)), contextlib.ExitStack() as stack:
        upstream, port = _start_upstream(stack, cores)
        running = _start(stack, [subject for subject in _ALL if subject.name in names], cores, port)
        for name, each in running.items():
            _await(name, each)
            pid = each.process.pid if each.process else upstream.pid
            print(f"{name} port={each.port} pid={pid} upstream_pid={upstream.pid}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            sys.stdin.read()


@contextlib.contextmanager
def _alone(console: Console) -> Generator[None, None, None]:
    """Hold the lock of this checkout's benchmark: two runs would share cores and folders."""
    _FOLDER.mkdir(parents=True, exist_ok=True)
    with (_FOLDER / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print("another run is under way here; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _start_upstream(stack: contextlib.ExitStack, cores: isolation.Cores) -> tuple[processes.Process, int]:
    command = processes.python_module("tests.bench.router.upstream", "--core", str(cores.load))
    upstream = processes.Process("upstream", command, core=cores.load, log=_empty("upstream") / "log")
    stack.callback(upstream.stop)
    upstream.await_ready(upstream.first_line, 20)
    return upstream, int(upstream.first_line())


def _start(
    stack: contextlib.ExitStack, chosen: Sequence[Subject], cores: isolation.Cores, upstream_port: int
) -> Mapping[str, Running]:
    running = {}
    for subject in chosen:
        folder = _empty(subject.name)
        each = subject.start(Site(core=cores.subject, upstream_port=upstream_port, folder=folder))
        if each.process is not None:
            stack.callback(each.process.stop)
        running[subject.name] = each
    return running


def _await(name: str, each: Running) -> None:
    check = functools.partial(probe.check, each.port)
    if each.process is not None:
        each.process.await_ready(check, _READY_S)
    else:
        check()


def _empty(name: str) -> Path:
    folder = _FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _facts(cores: isolation.Cores, offline: str | None, count: int) -> dict[str, str]:
    return {
        "division": cores.describe(),
        "network": offline or "loopback only",
        "rounds": str(count),
        "python": platform.python_version(),
        "kernel": platform.release(),
    }

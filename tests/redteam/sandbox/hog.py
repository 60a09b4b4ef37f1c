"""Runs inside a sandbox: takes as much of one resource as it gets, and prints how much that was."""

import json
import os
import signal
import sys
import time

MIB = 1 << 20


def say(**facts: object) -> None:
    print("HOG " + json.dumps(facts), flush=True)


def forks() -> None:
    count, refused = 0, ""
    while count < 400 and not refused:
        try:
            pid = os.fork()
        except OSError as error:
            refused = error.strerror or "?"
            break
        if pid == 0:
            signal.pause()
        count += 1
    say(forked=count, refused=refused)


def memory() -> None:
    held = []
    try:
        for _ in range(40):
            held.append(bytearray(32 * MIB))
            say(mib=len(held) * 32)
    except MemoryError:
        say(refused="MemoryError")


def children() -> None:
    for _ in range(8):
        if os.fork() == 0:
            held = bytearray(24 * MIB)
            time.sleep(2)
            os._exit(0 if held else 1)
    survivors = sum(os.wait()[1] == 0 for _ in range(8))
    say(survivors=survivors)


def fill(directory: str) -> None:
    """Many files, so that no limit on one file helps."""
    written, refused = 0, ""
    while written < 256 and not refused:
        try:
            with open(f"{directory}/fill-{written}", "wb") as file:
                for _ in range(4):
                    file.write(b"\0" * MIB)
                    file.flush()
                    written += 1
                os.fsync(file.fileno())
        except OSError as error:
            refused = error.strerror or "?"
    say(mib=written, refused=refused)


def fill_deleted(directory: str) -> None:
    """Files that no directory shows any more, held open."""
    held, written, refused = [], 0, ""
    while written < 256 and not refused:
        file = open(f"{directory}/ghost", "wb", buffering=0)  # noqa: SIM115  # held open on purpose
        os.unlink(f"{directory}/ghost")
        held.append(file)
        try:
            for _ in range(4):
                file.write(b"\0" * MIB)
                written += 1
        except OSError as error:
            refused = error.strerror or "?"
    say(mib=written, refused=refused)
    time.sleep(3)


def processor() -> None:
    """Burn with two processes for a second of wall time; count what the kernel gave."""
    try:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        widened = "OK"
    except OSError as error:
        widened = error.strerror or "?"
    began = time.monotonic()
    for _ in range(2):
        if os.fork() == 0:
            while time.monotonic() < began + 1.5:
                pass
            os._exit(0)
    for _ in range(2):
        os.wait()
    wall = time.monotonic() - began
    spent = os.times()
    say(share=(spent.children_user + spent.children_system) / wall, affinity=widened)


HOGS = {
    "forks": forks,
    "memory": memory,
    "children": children,
    "tmp": lambda: fill("/tmp"),
    "shm": lambda: fill("/dev/shm"),
    "workspace": lambda: fill("/sandbox"),
    "ghosts": lambda: fill_deleted("/sandbox"),
    "processor": processor,
}

if __name__ == "__main__":
    HOGS[sys.argv[1]]()
    time.sleep(1.2)  # stay for the watchdog's next look: the excess is what is under test, not the exit

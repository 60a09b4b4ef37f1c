"""What the kernel says about processes: CPU time and resident memory of a process and its children.

Reads /proc only.
"""

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Resident memory of a process tree, in MiB."""

    now_mib: float
    peak_mib: float


def tree(pid: int) -> list[int]:
    """Return the process and all its descendants that live now."""
    found = [pid]
    for known in found:
        for children in Path(f"/proc/{known}/task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text().split()]
            except OSError:  # the thread ended while we looked
                continue
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return user and system time that the processes have used so far."""
    total = 0.0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended
            continue
        total += (int(fields[11]) + int(fields[12])) * _TICK_S
    return total


def machine_busy_seconds(cores: Iterable[int]) -> float:
    """Return the time for which these cores were not idle, stolen time included."""
    wanted = {f"cpu{core}" for core in cores}
    total = 0.0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name in wanted:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
            total += (user + nice + system + irq + softirq + steal) * _TICK_S
    return total


def memory(pid: int) -> Memory:
    """Return resident memory now and at its peak, summed over the process tree."""
    now = peak = 0
    for member in tree(pid):
        for line in Path(f"/proc/{member}/status").read_text().splitlines():
            key, _, value = line.partition(":")
            if key == "VmRSS":
                now += int(value.split()[0])
            elif key == "VmHWM":
                peak += int(value.split()[0])
    return Memory(now_mib=now / 1024, peak_mib=peak / 1024)

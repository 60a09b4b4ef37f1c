"""Writes `syscalls.json` from kernel headers: `python -m ...isolation.generate_syscalls` on an x86_64 host.

Needs linux-libc-dev. x86_64 has its own table; aarch64 uses the generic one. Numbers from 424 on are the
same on every architecture, so calls newer than the installed headers are added by hand below.
"""

import json
import re
from pathlib import Path

_X86_64 = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
_GENERIC = Path("/usr/include/asm-generic/unistd.h")
_NEWER = {
    "cachestat": 451,
    "fchmodat2": 452,
    "map_shadow_stack": 453,
    "futex_wake": 454,
    "futex_wait": 455,
    "futex_requeue": 456,
    "statmount": 457,
    "listmount": 458,
    "lsm_get_self_attr": 459,
    "lsm_set_self_attr": 460,
    "lsm_list_modules": 461,
    "mseal": 462,
    "setxattrat": 463,
    "getxattrat": 464,
    "listxattrat": 465,
    "removexattrat": 466,
    "open_tree_attr": 467,
}
# On 64-bit kernels the generic header's __NR3264_ names mean these calls.
_GENERIC_64 = {"fstat": 80, "newfstatat": 79}


def _defines(header: Path, prefix: str) -> dict[str, int]:
    found = re.finditer(rf"#define {prefix}(\w+)\s+(\d+)", header.read_text(encoding="utf-8"))
    return {match[1]: int(match[2]) for match in found}


def main() -> None:
    """Write the tables beside this module."""
    tables = {
        "x86_64": _defines(_X86_64, "__NR_") | _NEWER,
        "aarch64": _defines(_GENERIC, "__NR(?:3264)?_") | _NEWER | _GENERIC_64,
    }
    # Markers in the generic header, and second names for two calls.
    for name in ("arch_specific_syscall", "syscalls", "sync_file_range2", "fstatat"):
        tables["aarch64"].pop(name, None)
    target = Path(__file__).with_name("syscalls.json")
    target.write_text(json.dumps(tables, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

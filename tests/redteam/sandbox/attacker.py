"""Runs inside a sandbox, standard library only: makes every attack and prints one JSON object of outcomes.

An outcome is the errno's name, or what the attacker got. Numbers of system calls and the targets come in the
environment.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import signal
import socket
import struct
import sys
import time
import urllib.request
from collections.abc import Callable

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
TARGETS = json.loads(os.environ["ATTACK_TARGETS"])
NUMBERS = TARGETS["syscalls"]


def code(number: int | None) -> str:
    return errno.errorcode.get(number or 0, f"errno {number}")


def attempt(action: Callable[[], object], got: str = "OK") -> str:
    try:
        result = action()
    except OSError as error:
        return code(error.errno)
    return result if isinstance(result, str) else got


def raw(name: str, *arguments: object) -> str:
    ctypes.set_errno(0)
    converted = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = libc.syscall(ctypes.c_long(NUMBERS[name]), *converted)
    return "OK" if result >= 0 else code(ctypes.get_errno())


def in_child(action: Callable[[], str]) -> str:
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write_end, action().encode())
        os._exit(0)
    os.close(write_end)
    status = os.waitpid(pid, 0)[1]
    said = os.read(read_end, 200).decode()
    os.close(read_end)
    return said or f"killed by {signal.Signals(os.WTERMSIG(status)).name}"


def connect(family: int, address: tuple[object, ...] | str) -> str:
    with socket.socket(family) as probe:
        probe.settimeout(3)
        return attempt(lambda: probe.connect(address), "OPEN")


def send_datagram(family: int, address: tuple[object, ...]) -> str:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        return attempt(lambda: probe.sendto(b"x", address), "SENT")


def read(path: str) -> str:
    def action() -> str:
        with open(path, "rb") as file:
            return f"READ {file.read(40)!r}"

    return attempt(action)


def write(path: str) -> str:
    def action() -> None:
        with open(path, "w", encoding="utf-8") as file:
            file.write("x")

    return attempt(action)


def open_socket(*arguments: int) -> str:
    return attempt(lambda: socket.socket(*arguments).close())


def self_report() -> dict[str, object]:
    with open("/proc/self/status", encoding="ascii") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    return {
        "uid": os.getuid(),
        "groups": os.getgroups(),
        "cap_effective": int(status["CapEff"], 16),
        "cap_permitted": int(status["CapPrm"], 16),
        "cap_inheritable": int(status["CapInh"], 16),
        "cap_ambient": int(status["CapAmb"], 16),
        "cap_bounding": int(status["CapBnd"], 16),
        "no_new_privs": status["NoNewPrivs"],
        "seccomp": status["Seccomp"],
        "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1],
        "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
        "environment": sorted(os.environ),
        "interfaces": [name for _, name in socket.if_nameindex()],
        "top": sorted(
            name
            for name in ("root", "home", "opt", "srv", "mnt", "var", "sys", "boot")
            if os.path.exists(f"/{name}")
        ),
        "host_tmp": sorted(os.listdir("/tmp")),
    }


def network() -> dict[str, object]:
    began = time.monotonic()
    resolved = attempt(lambda: socket.getaddrinfo("example.invalid.", 80) and "RESOLVED")
    dns_s = time.monotonic() - began
    host = ("127.0.0.1", TARGETS["host_port"])
    return {
        "tcp_outside": connect(socket.AF_INET, ("192.0.2.1", 80)),
        "tcp_metadata": connect(socket.AF_INET, ("169.254.169.254", 80)),
        "tcp_host_loopback": connect(socket.AF_INET, host),
        "tcp6_outside": connect(socket.AF_INET6, ("2001:db8::1", 80)),
        "tcp6_metadata": connect(socket.AF_INET6, ("fd00:ec2::254", 80)),
        "tcp6_mapped_host": connect(socket.AF_INET6, ("::ffff:127.0.0.1", TARGETS["host_port"])),
        "udp_outside": send_datagram(socket.AF_INET, ("192.0.2.1", 53)),
        "udp_metadata": send_datagram(socket.AF_INET, ("169.254.169.254", 53)),
        "udp6_outside": send_datagram(socket.AF_INET6, ("2001:db8::1", 53)),
        "abstract_socket_of_host": connect(socket.AF_UNIX, "\0" + TARGETS["abstract"]),
        "dns": resolved if resolved == "RESOLVED" else "refused",
        "dns_s": dns_s,
        "door": door(),
        "bind_unplanned_port": bind(9999),
    }


def door() -> str:
    with urllib.request.urlopen("http://127.0.0.1:8443/whoami", timeout=5) as answer:
        return f"{answer.status} {answer.read().decode()}"


def bind(port: int) -> str:
    with socket.socket() as probe:
        return attempt(lambda: probe.bind(("127.0.0.1", port)))


def files() -> dict[str, object]:
    return {
        "credential_by_host_path": read(TARGETS["credential"]),
        "credential_bound_on_purpose": read("/opt/leak/credential"),
        "shadow": read("/etc/shadow"),
        "host_tmp_file": read(TARGETS["host_file"]),
        "init_environ": read("/proc/1/environ"),
        "init_memory": read("/proc/1/mem"),
        "init_descriptors": attempt(lambda: os.listdir("/proc/1/fd") and "LISTED"),
        "init_root": attempt(lambda: os.listdir("/proc/1/root") and "LISTED"),
        "kernel_memory": read("/proc/kcore"),
        "kernel_keys": read("/proc/keys"),
        "write_root": write("/x"),
        "write_usr": write("/usr/x"),
        "write_etc": write("/etc/x"),
        "write_dev": write("/dev/x"),
        "write_code": write("/sandbox/agent/x"),
        "write_sysctl": write("/proc/sys/kernel/core_pattern"),
        "write_sysrq": sysrq(),
        "write_tmp": write("/tmp/x"),
        "write_workspace": write("/sandbox/x"),
        "seed": read("/sandbox/seed.txt"),
        "device_node": attempt(lambda: os.mknod("/tmp/disk", 0o60666, os.makedev(7, 0))),
        "set_uid_root": attempt(lambda: os.setuid(0)),
        "open_stderr": write("/dev/stderr"),
    }


def sysrq() -> str:
    if not os.path.exists("/proc/sysrq-trigger"):
        return "absent"
    return "covered" if os.stat("/proc/sysrq-trigger").st_rdev == os.stat("/dev/null").st_rdev else "open"


def kernel() -> dict[str, object]:
    victim = os.fork()
    if victim == 0:
        signal.pause()
        os._exit(0)
    word = ctypes.create_string_buffer(120)
    perf = ctypes.create_string_buffer(struct.pack("II", 0, 120), 120)
    text = ctypes.c_char_p
    outcomes: dict[str, object] = {
        "ptrace": raw("ptrace", 16, victim, 0, 0),
        "process_vm_readv": raw("process_vm_readv", victim, 0, 0, 0, 0, 0),
        "pidfd_getfd": raw("pidfd_getfd", 0, 0, 0),
        "mount": raw("mount", text(b"none"), text(b"/tmp"), text(b"tmpfs"), 0, 0),
        "umount": raw("umount2", text(b"/proc/sys"), 2),
        "move_mount": raw("move_mount", -100, text(b"/tmp"), -100, text(b"/run"), 0),
        "open_tree": raw("open_tree", -100, text(b"/usr"), 1),
        "mount_setattr": raw("mount_setattr", -100, text(b"/"), 0, word, 32),
        "pivot_root": raw("pivot_root", text(b"."), text(b".")),
        "chroot": raw("chroot", text(b"/tmp")),
        "unshare_user": in_child(lambda: raw("unshare", 0x10000000)),
        "unshare_mount": in_child(lambda: raw("unshare", 0x20000)),
        "clone_user": raw("clone", 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0),
        "clone_net": raw("clone", 0x40000000 | signal.SIGCHLD, 0, 0, 0, 0),
        "clone3": raw("clone3", word, 88),
        "setns": raw("setns", 0, 0),
        "bpf": raw("bpf", 5, 0, 0),
        "keyctl": raw("keyctl", 0, -3, 1),
        "add_key": raw("add_key", text(b"user"), text(b"x"), text(b"y"), 1, -3),
        "io_uring": raw("io_uring_setup", 1, word),
        "userfaultfd": raw("userfaultfd", 1),
        "perf": raw("perf_event_open", perf, 0, -1, -1, 0),
        "memfd": raw("memfd_create", text(b"x"), 0),
        "shared_segment": raw("shmget", 0, 4096, 0o1600),
        "personality": raw("personality", 0x0400000),
        "open_by_handle": raw("open_by_handle_at", -100, word, 0),
        "syslog": raw("syslog", 3, word, 100),
        "undumpable": raw("prctl", 4, 0, 0, 0, 0),
        "new_filter": raw("seccomp", 1, 0, 0),
        "type_into_terminal": attempt(lambda: fcntl.ioctl(0, 0x5412, b"x")),
        "packet_socket": open_socket(17, 3, 0),
        "vsock": open_socket(40, 1, 0),
        "alg_socket": open_socket(38, 5, 0),
        "bluetooth": open_socket(31, 3, 1),
        "netlink_route": open_socket(16, 3, 0),
        "netlink_netfilter": open_socket(16, 3, 12),
        "raw_socket": open_socket(2, 3, 1),
        "kill_init": attempt(lambda: os.kill(1, signal.SIGKILL), "sent"),
        "signal_host_process": attempt(lambda: os.kill(TARGETS["host_pid"], 0), "sent"),
    }
    if os.uname().machine == "x86_64":
        outcomes["x32_abi"] = in_child(lambda: str(libc.syscall(ctypes.c_long(0x40000000 | 39))))
    os.kill(victim, signal.SIGKILL)
    os.waitpid(victim, 0)
    return outcomes


def serve_forever(port: int) -> None:
    """Answer inbound connections with the sandbox's name, to be dialled from outside."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        print("SERVING", flush=True)
        while True:
            accepted, _ = listener.accept()
            with accepted, contextlib.suppress(OSError):
                accepted.sendall(os.environ["SANDBOX_NAME"].encode())


def main() -> None:
    report = {"self": self_report(), "network": network(), "files": files(), "kernel": kernel()}
    print("REPORT " + json.dumps(report), flush=True)
    serve_forever(int(sys.argv[1]))


if __name__ == "__main__":
    main()

"""A small internet in a network namespace, and sandboxes with nothing but a loop-back.

`World` has public-looking and private addresses on its `lo`; origins, the name server and Envoy live there. A
sandbox is an empty namespace; Envoy opens its doors inside. Namespaces are bind mounts below /run/kars-test,
made without any command of the machine.
"""

import contextlib
import ctypes
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import pytest
from kars_egress import namespaces as entering
from pyroute2 import IPRoute

_Result = TypeVar("_Result")
_MS_BIND = 4096
_MNT_DETACH = 2
_NO_DAD = 2
"""An address is there at once, instead of after it was looked for elsewhere."""
_ROOT = Path("/run/kars-test")

PUBLIC = "203.0.113.10"
PUBLIC_2 = "203.0.113.11"
PUBLIC_6 = "2001:db8::10"
PRIVATE = (
    "10.9.0.5",
    "169.254.169.254",
    "100.64.0.9",
    "192.168.7.7",
    "172.16.3.3",
    "192.0.0.8",
    "198.18.9.9",
)
PRIVATE_6 = ("fd00::5", "64:ff9b::a9fe:a9fe", "2002:a09:5::1")
RESOLVER = ("203.0.113.53", 53)


def needs_root() -> None:
    """Skip by name where network namespaces cannot be made."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces with addresses need uid 0")


class Namespace:
    """One network namespace, kept by a bind mount."""

    def __init__(self, label: str) -> None:
        """Make it and bring its loop-back up."""
        _ROOT.mkdir(parents=True, exist_ok=True)
        self.path = _ROOT / f"{label}-{secrets.token_hex(4)}"
        self.path.touch()
        made: Future[None] = Future()
        thread = threading.Thread(target=self._make, args=(made,), name="make namespace")
        thread.start()
        thread.join()
        made.result()

    def run(self, function: Callable[[], _Result]) -> _Result:
        """Call something in a thread that is inside; sockets that it makes stay there."""
        return entering.inside(self.path, function)

    def address(self, *addresses: str) -> None:
        """Give the loop-back more addresses."""

        def add() -> None:
            with IPRoute() as route:
                for address in addresses:
                    family = socket.AF_INET6 if ":" in address else socket.AF_INET
                    length = 128 if ":" in address else 32
                    route.addr(
                        "add", index=1, address=address, prefixlen=length, family=family, flags=_NO_DAD
                    )

        self.run(add)

    def route_to_itself(self, block: str) -> None:
        """Make a whole block local, as the platform does for synthetic addresses."""

        def add() -> None:
            with IPRoute() as route:
                # type 2: local; table 255: local
                route.route("add", dst=block, oif=1, type=2, table=255, scope=254)

        self.run(add)

    def close(self) -> None:
        """Let go of it; it ends with its last process."""
        _libc().umount2(str(self.path).encode(), _MNT_DETACH)
        self.path.unlink(missing_ok=True)

    def _make(self, made: "Future[None]") -> None:
        try:
            _check(_libc().unshare(entering.CLONE_NEWNET))
            source = f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"
            _check(_libc().mount(source.encode(), str(self.path).encode(), b"none", _MS_BIND, None))
            with IPRoute() as route:
                route.link("set", index=1, state="up")
            made.set_result(None)
        except BaseException as error:  # noqa: BLE001 (handed on)
            made.set_exception(error)


@contextlib.contextmanager
def namespaces(*labels: str) -> Iterator[list[Namespace]]:
    """Make namespaces for the length of a block."""
    made: list[Namespace] = []
    try:
        made.extend(Namespace(label) for label in labels)
        yield made
    finally:
        for namespace in made:
            namespace.close()


def internet() -> Namespace:
    """Return a namespace with the addresses of the world."""
    world = Namespace("world")
    world.address(PUBLIC, PUBLIC_2, RESOLVER[0], *PRIVATE, PUBLIC_6, *PRIVATE_6)
    return world


def sandbox() -> Namespace:
    """Return a namespace as an agent has it: a loop-back, and synthetic addresses that are local."""
    inside = Namespace("sandbox")
    inside.route_to_itself("198.18.0.0/15")
    return inside


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

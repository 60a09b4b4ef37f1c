"""The origins of the world: HTTP, TLS and raw ports on every address, each saying where it was reached."""

import functools
import json
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kars_egress_testkit.world import Namespace

HTTP_PORTS = (80, 8080)
TLS_PORTS = (443, 8443)
RAW_PORTS = (9,)


class Origins:
    """Listens until closed; remembers what arrived."""

    def __init__(self, world: Namespace, directory: Path, *, listen: bool = True) -> None:
        """Open the ports."""
        self.requests: list[dict[str, Any]] = []
        self.raw: list[bytes] = []
        self._context = _context(directory)
        self._sockets: list[socket.socket] = []
        for family in (socket.AF_INET, socket.AF_INET6) if listen else ():
            for port in (*HTTP_PORTS, *TLS_PORTS, *RAW_PORTS):
                listening = world.run(functools.partial(_listen, family, port))
                self._sockets.append(listening)
                threading.Thread(
                    target=self._accept, args=(listening, port), daemon=True, name=f"origin {port}"
                ).start()

    @property
    def reached(self) -> set[str]:
        """Addresses at which a request arrived."""
        return {str(request["address"]) for request in self.requests}

    def close(self) -> None:
        """Stop listening."""
        for listening in self._sockets:
            listening.close()

    def _accept(self, listening: socket.socket, port: int) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection, port), daemon=True, name="origin").start()

    def _serve(self, connection: socket.socket, port: int) -> None:
        address = connection.getsockname()[0]
        connection.settimeout(20)
        try:
            if port in RAW_PORTS:
                while data := connection.recv(65536):
                    self.raw.append(data)
                    connection.sendall(data)
                return
            if port in TLS_PORTS:
                connection = self._context.wrap_socket(connection, server_side=True)
            self._http(connection, address, port)
        except OSError:
            pass
        finally:
            connection.close()

    def _http(self, connection: socket.socket, address: str, port: int) -> None:
        pending = b""
        while True:
            while b"\r\n\r\n" not in pending:
                data = connection.recv(65536)
                if not data:
                    return
                pending += data
            head, _, pending = pending.partition(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            headers = {
                key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines[1:])
            }
            pending = pending[int(headers.get("content-length", "0")) :]
            request = {"address": address, "port": port, "line": lines[0], "headers": headers}
            self.requests.append(request)
            body = json.dumps(request).encode()
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)


def _listen(family: socket.AddressFamily, port: int) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family is socket.AF_INET6:
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listening.bind(("::" if family is socket.AF_INET6 else "0.0.0.0", port))
    listening.listen(1024)
    return listening


def _context(directory: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "origin")])
    now = datetime.now(UTC)
    names = [x509.DNSName(text) for text in ("*.test", "*.allowed.test", "*.wild.test")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = directory / "origin.pem"
    file.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context

"""Where tests find a real API server, and how one is started.

In this order: the one that `KARS_TEST_KUBECONFIG` names; one started from `KUBEBUILDER_ASSETS`, a directory
with `etcd` and `kube-apiserver`, which is the ecosystem's convention (setup-envtest fills it); none.
"""

import contextlib
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

HOW = (
    "no Kubernetes API server: set KARS_TEST_KUBECONFIG to the kubeconfig of a throw-away cluster, or"
    " KUBEBUILDER_ASSETS to a directory with etcd and kube-apiserver (setup-envtest use -p path)"
)
_READY_S = 90


@contextlib.contextmanager
def found() -> Iterator[Path | None]:
    """Yield the kubeconfig of an API server that tests may fill; None when there is none."""
    named, assets = os.environ.get("KARS_TEST_KUBECONFIG"), os.environ.get("KUBEBUILDER_ASSETS")
    if named:
        yield Path(named)
    elif assets:
        with _started(Path(assets)) as kubeconfig:
            yield kubeconfig
    else:
        yield None


@contextlib.contextmanager
def _started(assets: Path) -> Iterator[Path]:
    state = Path(tempfile.mkdtemp(prefix="kars-apiserver-"))
    try:
        with _etcd(assets, state) as store, _apiserver(assets, state, store) as kubeconfig:
            yield kubeconfig
    finally:
        shutil.rmtree(state)


@contextlib.contextmanager
def _etcd(assets: Path, state: Path) -> Iterator[str]:
    clients, peers = (f"http://127.0.0.1:{_free_port()}" for _ in range(2))
    arguments = [
        f"--data-dir={state / 'etcd'}",
        f"--listen-client-urls={clients}",
        f"--advertise-client-urls={clients}",
        f"--listen-peer-urls={peers}",
        f"--initial-advertise-peer-urls={peers}",
        f"--initial-cluster=default={peers}",
        "--unsafe-no-fsync",
    ]
    with _process([str(assets / "etcd"), *arguments], state / "etcd.log"):
        yield clients


@contextlib.contextmanager
def _apiserver(assets: Path, state: Path, store: str) -> Iterator[Path]:
    port, token = _free_port(), secrets.token_hex(16)
    certificate, key = _write_certificate(state)
    (state / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n', encoding="utf-8")
    arguments = [
        f"--etcd-servers={store}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--tls-cert-file={certificate}",
        f"--tls-private-key-file={key}",
        f"--token-auth-file={state / 'tokens.csv'}",
        "--authorization-mode=RBAC",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
        "--service-cluster-ip-range=10.0.0.0/24",
    ]
    kubeconfig = state / "kubeconfig"
    where = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(certificate)}
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "test", "cluster": where}],
                "users": [{"name": "admin", "user": {"token": token}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
                "current-context": "test",
            }
        ),
        encoding="utf-8",
    )
    log = state / "apiserver.log"
    with _process([str(assets / "kube-apiserver"), *arguments], log) as server:
        trust = ssl.create_default_context(cafile=str(certificate))
        _wait_until_ready(f"{where['server']}/readyz", token, trust, server, log)
        yield kubeconfig


def _wait_until_ready(
    url: str, token: str, trust: ssl.SSLContext, server: subprocess.Popen[bytes], log: Path
) -> None:
    asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(asked, timeout=2, context=trust):
            return
        time.sleep(0.2)
    raise AssertionError(f"the API server is not ready:\n{log.read_text(encoding='utf-8')[-2000:]}")


def _write_certificate(state: Path) -> tuple[Path, Path]:
    """Write a certificate for loopback that signs itself, and its key; return their paths."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kars-test-apiserver")])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    public = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, hashes.SHA256())
    )
    certificate, key = state / "apiserver.crt", state / "apiserver.key"
    certificate.write_bytes(public.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return certificate, key


@contextlib.contextmanager
def _process(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

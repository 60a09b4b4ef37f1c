"""One API server for all tests here, with our definitions applied."""

import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kars_controller.api_types import ALL_KINDS, Kind

from services.controller.tests.kubernetes import apiserver
from services.controller.tests.kubernetes.cluster import Cluster

DEFINITIONS = Path(__file__).parents[4] / "deploy" / "crds"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """An API server that serves the kinds."""
    with apiserver.found() as kubeconfig:
        if kubeconfig is None:
            pytest.skip(apiserver.HOW)
        with Cluster(kubeconfig) as installer:
            applied = installer.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(DEFINITIONS))
            assert applied.count("serverside-applied") == len(ALL_KINDS), applied
        with Cluster(kubeconfig) as server:
            for kind in ALL_KINDS:
                _wait_until_established(server, kind)
            yield server


@pytest.fixture(scope="session")
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of this run's own; what is in it goes with it."""
    name = f"test-{secrets.token_hex(4)}"
    cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    yield name
    cluster.request("DELETE", f"/api/v1/namespaces/{name}")


def _wait_until_established(server: Cluster, kind: Kind) -> None:
    url = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{kind.plural}.kars.azure.com"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = server.request("GET", url)
        states = {item["type"]: item["status"] for item in found.get("status", {}).get("conditions", ())}
        if states.get("Established") == "True" and states.get("NamesAccepted") == "True":
            return
        time.sleep(0.1)
    raise AssertionError(f"{kind.name} is not established: {found.get('status')}")

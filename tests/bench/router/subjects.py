"""The subjects that need nothing of ours: no proxy at all, bare Envoy, LiteLLM proxy.

Each is started on the subject's core with one worker and the same upstream,
and with as little work of its own as it can be given: they are the yardsticks,
so every doubt is decided in their favour.
"""

import dataclasses
import json
import os
import socket
from pathlib import Path
from typing import Protocol

from tests.bench.router import environments, processes, wire


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What a subject is given.

    Attributes:
        core: the core that it runs on.
        upstream_port: where the provider listens, on 127.0.0.1.
        folder: its own folder for configuration, state and log; empty.
    """

    core: int
    upstream_port: int
    folder: Path


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A subject that has been started: where it listens and its process, if it has one."""

    port: int
    process: processes.Process | None


class Subject(Protocol):
    """One of the things that are compared."""

    name: str
    title: str

    def start(self, site: Site) -> Running:
        """Start it; it need not be ready when this returns.

        Raises:
            InstallError: what it needs cannot be installed.
        """


class Direct:
    """The load generator talks to upstream: the limit of the harness itself."""

    name = "direct"
    title = "direct (no proxy)"

    def start(self, site: Site) -> Running:
        """Start nothing."""
        return Running(port=site.upstream_port, process=None)


class Envoy:
    """The real Envoy binary as a pass-through with one worker: what the machine can do."""

    name = "envoy"
    title = "Envoy, bare pass-through"

    def start(self, site: Site) -> Running:
        """Write its bootstrap and start it."""
        port = free_port()
        bootstrap = site.folder / "envoy.json"
        bootstrap.write_text(json.dumps(_envoy_bootstrap(port, site.upstream_port), indent=1))
        command: list[str | Path] = [
            environments.ensure_envoy() / "bin" / "envoy", "-c", bootstrap, "--concurrency", "1",
            "--disable-hot-restart", "-l", "warning",
        ]  # fmt: skip
        log = site.folder / "log"
        return Running(port=port, process=processes.Process(self.name, command, core=site.core, log=log))


class LiteLLM:
    """LiteLLM's proxy without database, keys, callbacks or budgets: its fastest form."""

    name = "litellm"
    title = "LiteLLM proxy"

    def start(self, site: Site) -> Running:
        """Write its configuration and start one worker."""
        port = free_port()
        config = site.folder / "litellm.json"  # JSON is YAML
        config.write_text(json.dumps(_litellm_config(site.upstream_port), indent=1))
        command: list[str | Path] = [
            environments.ensure_peer() / "bin" / "litellm", "--config", config, "--host", "127.0.0.1",
            "--port", str(port), "--num_workers", "1", "--telemetry", "False",
        ]  # fmt: skip
        env = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(site.folder),
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it fetches prices at start
            "LITELLM_LOG": "ERROR",
            "LITELLM_MODE": "PRODUCTION",  # no .env file
        }
        log = site.folder / "log"
        process = processes.Process(self.name, command, core=site.core, log=log, env=env)
        return Running(port=port, process=process)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _litellm_config(upstream_port: int) -> dict[str, object]:
    def model(name: str) -> dict[str, object]:
        target = {
            "model": f"openai/{name}",
            "api_base": f"http://127.0.0.1:{upstream_port}/v1",
            "api_key": "bench",
        }
        return {"model_name": name, "litellm_params": target}

    return {
        "model_list": [model(wire.MODEL), model(wire.PACED_MODEL)],
        # No key to check is the fastest form; it listens where nobody else is.
        "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},
        "litellm_settings": {"telemetry": False, "set_verbose": False},
    }


def _envoy_bootstrap(port: int, upstream_port: int) -> dict[str, object]:
    def address(number: int) -> dict[str, object]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    types = "type.googleapis.com/envoy.extensions.filters"
    route = {"match": {"prefix": "/"}, "route": {"cluster": "upstream", "timeout": "0s"}}
    manager = {
        "@type": f"{types}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "generate_request_id": False,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{types}.http.router.v3.Router"},
            }
        ],
    }
    endpoint = {"endpoint": {"address": address(upstream_port)}}
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    return {
        "static_resources": {
            "listeners": [{"name": "in", "address": address(port), "filter_chains": [{"filters": filters}]}],
            "clusters": [
                {
                    "name": "upstream",
                    "type": "STATIC",
                    "connect_timeout": "2s",
                    "load_assignment": {
                        "cluster_name": "upstream",
                        "endpoints": [{"lb_endpoints": [endpoint]}],
                    },
                }
            ],
        }
    }

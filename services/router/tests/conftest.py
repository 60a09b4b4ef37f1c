"""Routers and providers for these tests."""

from kars_router_testkit.fixtures import provider, router, start_router
from kars_router_testkit.mesh_bench import mesh_bench

__all__ = ["mesh_bench", "provider", "router", "start_router"]

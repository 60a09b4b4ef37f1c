"""Routers and providers for these tests."""

from kars_router_testkit.fixtures import provider, router, start_router

__all__ = ["provider", "router", "start_router"]

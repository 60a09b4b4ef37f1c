"""Domains that nobody may reach: fetched here, distributed to every Envoy, never lifted by policy."""

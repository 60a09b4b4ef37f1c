"""Providers of models: configuration, credentials, the HTTP client, health and dispatch. No policy."""

"""The Envoy process: what it is started with, and that it runs."""

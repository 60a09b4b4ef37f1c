"""What A2A can be asked: the same for all bindings."""

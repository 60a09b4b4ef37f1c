"""The doors: gRPC servicers. Decode, ask the domain, encode; no decisions."""

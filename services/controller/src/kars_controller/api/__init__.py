"""The doors: gRPC servicers. Decode, call the domain, encode; they decide nothing."""

"""The doors: JSON-RPC and HTTP+JSON over HTTP, gRPC. They read and write; they decide nothing."""

"""What a sandbox may reach: hosts, entries, approvals, and the decision. No gRPC, no Envoy, no file."""

"""The egress service: control plane of the L7 proxy that every web request of an agent passes."""

"""Rules for a pod whose containers share a network namespace: only the proxy's user reaches the world."""

from kars_egress.guard.rules import Guard, render_iptables, render_nftables

__all__ = ["Guard", "render_iptables", "render_nftables"]

"""Delivering A2A requests to the agent behind the door: any A2A server on the sandbox's loopback.

Complete in itself and not wired into the router's start yet: `api/a2a.py` serves it, and the composition root
adds it when a call from the gateway walks the router's path (ADR 0040).
"""

"""What tests, attacks and benchmarks of the egress share: a world in namespaces, and real parts in it.

Not part of the wheel.
"""

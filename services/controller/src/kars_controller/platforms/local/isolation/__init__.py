"""What one Linux kernel can do to contain one process. Standard library and ctypes only.

Nothing here knows what an agent, a router, a pod or a plan is.
"""

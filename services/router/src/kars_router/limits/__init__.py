"""How often and how many at once: buckets and slots. Knows nothing of policy or HTTP."""

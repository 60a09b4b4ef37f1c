"""Who calls: credentials in, a verified principal out. What a header merely claims is never read."""

"""Tasks: who owns them, what they are now, and following them while they run."""

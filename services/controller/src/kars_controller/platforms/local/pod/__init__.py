"""The pod supervisor: one process a sandbox, independent of the controller. Standard library only."""

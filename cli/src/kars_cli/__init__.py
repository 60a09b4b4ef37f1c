"""The kars command."""

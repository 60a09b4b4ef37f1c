"""The `kars` command: what operators and developers type. One module a command group, in `commands`."""

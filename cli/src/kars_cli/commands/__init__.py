"""The commands, one module a group: read the arguments, call the controller, print."""

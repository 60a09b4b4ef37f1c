"""The one path of every governed call: the call, the gates' interface, and the walk."""

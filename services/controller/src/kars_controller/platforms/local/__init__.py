"""The embedded platform: pods run as isolated processes on this machine."""

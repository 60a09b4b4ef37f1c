"""Starting and stopping the local platform: its files, its controller process, its pods."""

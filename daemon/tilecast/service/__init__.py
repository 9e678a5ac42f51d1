"""The running daemon: threads, run folders, configuration, and the one place where all of it is put together."""

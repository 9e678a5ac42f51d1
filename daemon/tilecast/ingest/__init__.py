"""From sockets to journals: what comes in, what becomes of it, and where each frame belongs."""

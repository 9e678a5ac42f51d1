"""Takes images from folders in which other programs write them, and sends them as runs."""

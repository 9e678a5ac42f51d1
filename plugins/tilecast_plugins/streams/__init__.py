"""Streams of other acquisition software, taken in as they are: areaDetector's NDPluginZMQ, and Dectris's stream 2.

`areadetector` and `dectris` read messages: pure functions of their parts, which check every field before anything is
decoded or allocated, and make runs of what was read. `listening` owns the socket. They work as a command, `tilecast
listen`, and as sources inside the daemon (`plugin`, `options`). How to use them: README.md beside this file.
"""

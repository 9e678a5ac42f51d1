"""Where a run's mosaic lies: tiles, placements, and the run's own history, behind one interface.

* `tile_store`: the interface, `TileReader` and `TileStore`, and what goes in and comes out;
* `sqlite_store`, `sqlite_reader`: its implementation in one SQLite file per run, for one writer and many readers;
* `checkpointer`: keeps the file's write-ahead log short; `migrations`: its schema; `sqlite_check`: what `fsck` asks it;
* `folders`: how run folders are named and found, and how a rebuilt file takes the old one's place; `lock`: who writes;
* `coverage`: how the mask of a tile is packed.

Nothing here knows sockets, the journal, PZF, or how pixels are computed.
"""

"""Where mosaics lie: the interface of a tile store, and its implementation in SQLite."""

"""The programs of the engine, each started as a process of its own: `tune` first, then `evaluate` and `export`."""

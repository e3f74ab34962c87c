"""Executors start the programs of the engine: `executor` is the protocol, `local` and `warm` implement it."""

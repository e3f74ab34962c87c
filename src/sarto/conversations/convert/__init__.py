"""Local files of many formats into JSON lines that a tuning job takes. Knows no server; the `sarto` program uses it."""

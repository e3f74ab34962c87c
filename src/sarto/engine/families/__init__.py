"""Base models: `decoder` (what all families share), one short file per family, `load` (weights in), and `convert` with
`gguf` (foreign layouts, once).
"""

"""Weights as files: `convert` (downloaded weights to our layout), `merge` (adapter into base weights), `peft` (adapter
files), `gguf_reader` and `gguf_writer` (llama.cpp's format)."""

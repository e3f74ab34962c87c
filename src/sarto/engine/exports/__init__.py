"""A tuned model as files for elsewhere: `run` (the program, from top to bottom), `merge` (adapter into base weights),
`gguf` (llama.cpp's format), `card` (what a reader should know of it), `read_back` (the files in a
clean process)."""

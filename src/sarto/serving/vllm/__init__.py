"""Generation by vLLM: `generator` sends requests, `process` starts the server, `stream` parses its answers."""

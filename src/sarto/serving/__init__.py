"""Generation without torch in this process: `generator` (the protocol), `worker.client` (a `Generator` that owns a
child process), `protocol` (their frames), `worker.program` (the child, the only module here that loads the engine)."""

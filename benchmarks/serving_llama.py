"""llama.cpp as a peer of `serving_vs_peers.py`, run by the interpreter of an environment that has `llama-cpp-python`:

    python serving_llama.py FILE.gguf THREADS {wall|processor}

One JSON line in (`prompts`, `new`), one out: prompt tokens and decoded tokens a second over all sequences. It cannot
mix adapters in a batch, so a merged file is its best case.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import llama_cpp as library  # type: ignore[import-not-found,unused-ignore]

SEQUENCES = 8


class LlamaCpp:
    def __init__(self, gguf: str, threads: int) -> None:
        library.llama_backend_init()
        self.model = library.llama_model_load_from_file(gguf.encode(), library.llama_model_default_params())
        parameters = library.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = SEQUENCES * 1024, 2048, 512
        parameters.n_seq_max, parameters.n_threads, parameters.n_threads_batch = SEQUENCES, threads, threads
        parameters.kv_unified = False
        self.context = library.llama_init_from_model(self.model, parameters)
        self.batch = library.llama_batch_init(2048, 0, SEQUENCES)

    def measure(self, prompts: list[list[int]], new: int, clock: Any) -> tuple[float, float]:
        library.llama_memory_clear(library.llama_get_memory(self.context), True)
        began = clock()
        for sequence, prompt in enumerate(prompts):
            last = len(prompt) - 1
            self._decode([(token, place, sequence, place == last) for place, token in enumerate(prompt)])
        first = clock() - began
        began = clock()
        for step in range(new):
            self._decode([(1000 + step, len(p) + step, sequence, True) for sequence, p in enumerate(prompts)])
        return sum(map(len, prompts)) / first, len(prompts) * new / (clock() - began)

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        batch = self.batch
        for place, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[place], batch.pos[place], batch.n_seq_id[place] = token, position, 1
            batch.seq_id[place][0], batch.logits[place] = sequence, wanted
        batch.n_tokens = len(rows)
        assert library.llama_decode(self.context, batch) == 0
        library.llama_synchronize(self.context)


def main() -> None:
    gguf, threads, kind = sys.argv[1:]
    peer = LlamaCpp(gguf, int(threads))
    clock = time.process_time if kind == "processor" else time.perf_counter
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(peer.measure(asked["prompts"], asked["new"], clock)), flush=True)


if __name__ == "__main__":
    main()

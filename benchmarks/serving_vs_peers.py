"""Our serving against its peers: one base, one set of adapters, rounds in turn, so that all meet the same machine.

Peers: transformers with peft (live adapters), and llama.cpp where `llama_cpp` is installed and `--gguf` names an F16
file of the base. Prints each rate, then each ratio with its bar; `--json` one object. With `--processor-seconds` rates
are per processor second, which other load hardly moves (use `--threads 1` with it).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sarto.catalog import Catalog
from sarto.engine.data.tokenizer import ChatTokenizer
from sarto.engine.serving.adapters import AdapterKey
from sarto.engine.serving.engine import Engine, EngineOptions
from sarto.schema.runs import BaseWeights
from serving_ours import Clock, Ours, Streams, make_adapters

BATCH = 8
PREFILL, ONE, EIGHT = "prefill, adapter", "decode, 1 sequence, adapter", "decode, 8 sequences, 8 adapters"
MERGED = "decode, 8 sequences, no adapter (as if merged)"
Rates = dict[str, float]


def prompts(count: int, length: int, vocabulary: int, seed: int) -> list[list[int]]:
    chance = random.Random(seed)
    return [[chance.randrange(1000, vocabulary) for _ in range(length)] for _ in range(count)]


def our_rates(ours: Ours, given: argparse.Namespace, seed: int, clock: Clock) -> Rates:
    made = prompts(BATCH, given.prompt, ours.runner.config.vocabulary, seed)
    one_prefill, one = ours.measure(made[:1], ours.choices[:1], given.new, clock)
    _, eight = ours.measure(made, ours.choices, given.new, clock)
    _, merged = ours.measure(made, [None] * BATCH, given.new, clock)
    return {PREFILL: one_prefill, ONE: one, EIGHT: eight, MERGED: merged}


class Transformers:
    """transformers with peft: bfloat16, live adapters, rows of a batch with adapters of their own."""

    def __init__(self, base: BaseWeights, keys: list[AdapterKey]) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.bfloat16)
        self.model = PeftModel.from_pretrained(model, keys[0].folder, adapter_name=keys[0].digest)
        for key in keys[1:]:
            self.model.load_adapter(key.folder, adapter_name=key.digest)
        self.model.eval()
        self.names = [key.digest for key in keys]

    def rates(self, given: argparse.Namespace, seed: int, clock: Clock) -> Rates:
        vocabulary = self.model.config.vocab_size
        made = torch.tensor(prompts(BATCH, given.prompt, vocabulary, seed))
        self.model.set_adapter(self.names[0])
        one_prefill, one = self._measure(made[:1], given.peer_new, clock, None)
        _, eight = self._measure(made, given.peer_new, clock, self.names)
        return {PREFILL: one_prefill, ONE: one, EIGHT: eight}

    @torch.inference_mode()
    def _measure(self, ids: torch.Tensor, new: int, clock: Clock, names: list[str] | None) -> tuple[float, float]:
        options: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        if names is not None:
            options["adapter_names"] = names
        mask = torch.ones_like(ids)
        began = clock()
        self.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=1, **options)
        first = clock() - began
        began = clock()
        self.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=1 + new, **options)
        return ids.numel() / first, len(ids) * new / (clock() - began - first)


class LlamaCpp:
    """llama.cpp on an F16 file without adapter: it cannot mix adapters in a batch, so this is its best case."""

    def __init__(self, gguf: str, threads: int) -> None:
        import llama_cpp

        self.library = library = llama_cpp
        library.llama_backend_init()
        self.model = library.llama_model_load_from_file(gguf.encode(), library.llama_model_default_params())
        parameters = library.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = BATCH * 1024, 2048, 512
        parameters.n_seq_max, parameters.n_threads, parameters.n_threads_batch = BATCH, threads, threads
        parameters.kv_unified = False
        self.context = library.llama_init_from_model(self.model, parameters)
        self.batch = library.llama_batch_init(2048, 0, BATCH)

    def rates(self, given: argparse.Namespace, seed: int, clock: Clock) -> Rates:
        made = prompts(BATCH, given.prompt, given.vocabulary, seed)
        one_prefill, one = self._measure(made[:1], given.new, clock)
        _, eight = self._measure(made, given.new, clock)
        return {PREFILL: one_prefill, ONE: one, EIGHT: eight}

    def _measure(self, made: list[list[int]], new: int, clock: Clock) -> tuple[float, float]:
        self.library.llama_memory_clear(self.library.llama_get_memory(self.context), True)
        began = clock()
        for sequence, prompt in enumerate(made):
            last = len(prompt) - 1
            self._decode([(token, place, sequence, place == last) for place, token in enumerate(prompt)])
        first = clock() - began
        began = clock()
        for step in range(new):
            self._decode([(1000 + step, len(p) + step, sequence, True) for sequence, p in enumerate(made)])
        return sum(map(len, made)) / first, len(made) * new / (clock() - began)

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        batch = self.batch
        for place, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[place], batch.pos[place], batch.n_seq_id[place] = token, position, 1
            batch.seq_id[place][0], batch.logits[place] = sequence, wanted
        batch.n_tokens = len(rows)
        assert self.library.llama_decode(self.context, batch) == 0
        self.library.llama_synchronize(self.context)


def first_token_seconds(base: BaseWeights, keys: list[AdapterKey], given: argparse.Namespace) -> Rates:
    """p95 of the time to first token with 1 and with 8 clients, each asking again when it has its answer."""
    tokenizer = ChatTokenizer.load(base.folder)
    words = [word for word in (tokenizer.token_text(n) for n in range(5000, 20_000)) if word.strip().isalpha()]

    def prompt(number: int) -> str:
        return "".join(random.Random(number).choices(words, k=given.prompt - 40))

    engine = Engine(EngineOptions(threads=given.threads))
    try:
        streams = Streams(engine, base, keys)
        streams.run(1, prompt, 4, lambda done, _: done >= 1)
        found = {}
        for clients in (1, BATCH):
            seconds = streams.run(clients, prompt, given.new, lambda done, _, n=clients: done >= 5 * max(n, 4))
            found[f"time to first token p95, {clients} client(s), ms"] = 1000 * statistics.quantiles(seconds, n=20)[18]
        return found
    finally:
        engine.close()


def soak(base: BaseWeights, keys: list[AdapterKey], seconds: float, threads: int) -> Rates:
    """64 clients, mixed adapters: answers, errors, and what the peak of memory still grew by in the second half."""
    engine = Engine(EngineOptions(threads=threads))
    try:
        streams = Streams(engine, base, keys)
        peaks: list[int] = []

        def stop(done: int, passed: float) -> bool:
            if passed > seconds / 2 and not peaks:
                peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
            return passed > seconds

        answers = streams.run(64, lambda n: f"Story {n}: " + "word " * (n % 200), 48, stop)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peaks[0]) / 1024
        return {"soak answers": len(answers), "soak errors": len(streams.errors), "soak growth of peak, MiB": grown}
    finally:
        engine.close()


def sweep(base: BaseWeights, keys: list[AdapterKey], seconds: float, threads: int) -> Rates:
    """Answers a second of 16 clients by the number of adapters they take turns with; 64 are resident at most. Adapters
    beyond the first few have names of their own over the same files: what is measured is residency."""
    found = {}
    for count in (1, 8, 64, 1000):
        engine = Engine(EngineOptions(threads=threads))
        try:
            named = [AdapterKey(f"{n}-{keys[n % len(keys)].digest}", keys[n % len(keys)].folder) for n in range(count)]
            streams = Streams(engine, base, named)
            answers = streams.run(16, lambda n: f"Story {n}: " + "word " * 40, 32, lambda _, passed: passed > seconds)
            found[f"answers a second, {count} adapter(s) in use"] = len(answers) / seconds
        finally:
            engine.close()
    return found


def ratios(rates: dict[str, Rates]) -> list[tuple[str, float, str]]:
    """(what, ratio, bar)."""
    ours, found = rates["ours"], []
    for peer, bars in (
        ("transformers with peft", {ONE: "≥ 2", EIGHT: "≥ 2.5", PREFILL: ""}),
        ("llama.cpp F16", {ONE: "", EIGHT: "≥ 1.2", PREFILL: "≥ 1.8"}),
    ):
        for what, bar in bars.items():
            if what in rates.get(peer, {}):
                found.append((f"{what} over {peer}", ours[what] / rates[peer][what], bar))
    found.append(("share lost to 8 different adapters", 1 - ours[EIGHT] / ours[MERGED], "≤ 0.25"))
    waits = [value for name, value in ours.items() if name.startswith("time to first token")]
    if len(waits) == 2:
        found.append(("time to first token, 8 clients over 1", waits[1] / waits[0], "≤ 4"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="smollm2-135m-instruct", help="id of base weights on this machine")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--peer-new", type=int, default=16, help="new tokens of the slow peer; its rate is per token")
    parser.add_argument("--gguf", help="F16 file of the base, for llama.cpp")
    parser.add_argument("--soak", type=float, default=0, help="seconds with 64 clients at the end")
    parser.add_argument("--sweep", type=float, default=0, help="seconds with each number of adapters, 1 to 1,000")
    parser.add_argument("--ours-only", action="store_true")
    parser.add_argument("--processor-seconds", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    clock = time.process_time if given.processor_seconds else time.perf_counter
    catalog = Catalog.load()
    base = catalog.base(catalog.weights[given.weights])
    with tempfile.TemporaryDirectory() as folder:
        keys = make_adapters(base, Path(folder), BATCH)
        ours = Ours(base, torch.bfloat16, keys)
        given.vocabulary = ours.runner.config.vocabulary
        measured: dict[str, Callable[[int], Rates]] = {"ours": lambda seed: our_rates(ours, given, seed, clock)}
        if not given.ours_only:
            peer = Transformers(base, keys)
            measured["transformers with peft"] = lambda seed: peer.rates(given, seed, clock)
        if given.gguf:
            other = LlamaCpp(given.gguf, given.threads)
            measured["llama.cpp F16"] = lambda seed: other.rates(given, seed, clock)
        rounds: dict[str, list[Rates]] = {name: [] for name in measured}
        for seed in range(-1, given.rounds):
            for name, measure in measured.items():
                found = measure(seed)
                rounds[name] += [found] if seed >= 0 else []  # the first round warms up
        rates = {
            name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in rounds.items()
        }
        rates["ours"] |= first_token_seconds(base, keys, given)
        if given.sweep:
            rates["ours"] |= sweep(base, keys, given.sweep, given.threads)
        if given.soak:
            rates["ours"] |= soak(base, keys, given.soak, given.threads)
    show(rates, given)


def show(rates: dict[str, Rates], given: argparse.Namespace) -> None:
    load = os.getloadavg()[0]
    if given.json:
        print(json.dumps({"threads": given.threads, "load": load, "rates": rates, "ratios": ratios(rates)}))
        return
    unit = "processor second" if given.processor_seconds else "second"
    print(
        f"{given.threads} thread(s), prompt {given.prompt}, {given.new} new tokens, tokens per {unit}, load {load:.1f}"
    )
    for name, row in rates.items():
        for what, value in row.items():
            print(f"  {name:24} {what:48} {value:10.1f}")
    for what, ratio, bar in ratios(rates):
        print(f"  {what:73} {ratio:10.2f}  {bar}")


if __name__ == "__main__":
    main()

"""Our serving against its peers: one base, one set of adapters, rounds in turn, so that all meet the same machine.

Peers: transformers with peft (live adapters), from this environment, and with `--llama` llama.cpp on one merged model
in F16, from an environment of its own that the program makes. Prints each rate, then each ratio with its bar; `--json`
one object. With `--processor-seconds` rates are per processor second, which other load moves less (use `--threads 1`).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from processor import show_processor
from sarto.catalog import Catalog
from sarto.contract.common import BaseWeights
from sarto.conversations.examples import parse_line
from sarto.engine.rendering.tokenizer import ChatTokenizer
from sarto.engine.serving.adapter_pool import AdapterKey
from sarto.engine.serving.engine import Engine, EngineOptions
from sarto.engine.serving.linear_panels import compiled_panels
from sarto.engine.serving.parity import Divergence, reply_logits
from sarto.engine.weights.gguf_writer import F16, write_gguf
from sarto.engine.weights.peft import read_adapter
from sarto.samples import validation_rows
from serving_ours import Clock, Ours, Streams, make_adapters

BATCH = 8
PREFILL, ONE, EIGHT = "prefill, adapter", "decode, 1 sequence, adapter", "decode, 8 sequences, 8 adapters"
MERGED = "decode, 8 sequences, no adapter (as if merged)"
INT8 = "ours, int8"
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

    def __init__(self, base: BaseWeights, keys: list[AdapterKey], dtype: torch.dtype = torch.bfloat16) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=dtype)
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
    def answers(self, ids: torch.Tensor, new: int) -> list[list[int]]:
        options: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        mask = torch.ones_like(ids)
        found = self.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=new, adapter_names=self.names, **options
        )
        return [row[ids.shape[1] :].tolist() for row in found]

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
    """serving_llama.py on an F16 file of one merged model, in an environment of its own that is made once."""

    def __init__(self, gguf: Path, given: argparse.Namespace) -> None:
        python = given.llama_environment / "bin" / "python"
        if not python.exists():
            print(f"building llama-cpp-python in {given.llama_environment}", file=sys.stderr)
            venv.create(given.llama_environment, with_pip=True)
            subprocess.run([python, "-m", "pip", "install", "-q", "llama-cpp-python"], check=True)
        kind = "processor" if given.processor_seconds else "wall"
        command = [str(python), str(Path(__file__).with_name("serving_llama.py")), str(gguf), str(given.threads), kind]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def rates(self, given: argparse.Namespace, seed: int) -> Rates:
        made = prompts(BATCH, given.prompt, given.vocabulary, seed)
        one_prefill, one = self._ask(made[:1], given.new)
        _, eight = self._ask(made, given.new)
        return {PREFILL: one_prefill, ONE: one, EIGHT: eight}

    def _ask(self, made: list[list[int]], new: int) -> tuple[float, float]:
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write(json.dumps({"prompts": made, "new": new}) + "\n")
        self._child.stdin.flush()
        prefill, decode = json.loads(self._child.stdout.readline())
        return prefill, decode

    def close(self) -> None:
        self._child.kill()
        self._child.wait()


def same_answers(base: BaseWeights, keys: list[AdapterKey], given: argparse.Namespace) -> Rates:
    """Greedy answers in float32, token by token, against transformers with peft."""
    peer = Transformers(base, keys, torch.float32)
    ours = Ours(base, torch.float32, keys)
    same, length, new = 0, 64, 16
    for batch in range(0, given.identity, BATCH):
        made = prompts(BATCH, length, ours.runner.config.vocabulary, 1000 + batch)
        ours.measure(made, ours.choices, new - 1, time.perf_counter)
        expected = peer.answers(torch.tensor(made), new)
        same += sum(one == other for one, other in zip(ours.answers, expected, strict=True))
    asked = -(-given.identity // BATCH) * BATCH
    return {"float32 answers of 16 tokens": asked, "of them equal to transformers with peft": same}


def int8_cost(base: BaseWeights, count: int) -> Rates:
    """Perplexity of the sample's replies under the base, by the precision of weights."""
    rows = [parse_line(line, number) for number, line in enumerate(validation_rows()[:count], 1)]
    found = {}
    for name, dtype, int8 in (
        ("float32", torch.float32, False), ("bfloat16", torch.bfloat16, False), ("int8", torch.bfloat16, True),
    ):  # fmt: skip
        measured = Divergence()
        for tokens, logits in reply_logits(base, None, rows, dtype=dtype, device=torch.device("cpu"), int8=int8):
            measured.add(logits, logits, torch.tensor(tokens[-len(logits) :]))
        perplexity = measured.certificate(name, None, 1.0).serving_perplexity
        assert perplexity is not None
        found[f"perplexity of {measured.compared} reply tokens, {name}"] = perplexity
    return found


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
    """64 clients, mixed adapters, one engine: answers, errors, and the memory of its process at every answer."""
    torch.set_num_threads(threads)
    engine = Engine(EngineOptions(threads=threads))
    try:
        streams = Streams(engine, base, keys)
        held: list[tuple[float, float]] = []

        def stop(_: int, passed: float) -> bool:
            held.append((passed, resident_mib()))
            return passed > seconds

        answers = streams.run(64, lambda n: f"Story {n}: " + "word " * (n % 200), 48, stop)
    finally:
        engine.close()
    fifths = [[mib for at, mib in held if part <= 5 * at / seconds < part + 1] for part in range(5)]
    medians = [statistics.median(part) for part in fifths]
    slope = statistics.linear_regression(*zip(*((at, mib) for at, mib in held if at > seconds / 5), strict=True)).slope
    return {
        "soak answers": len(answers),
        "soak errors": len(streams.errors),
        **{f"soak memory, fifth {number} of 5, MiB": value for number, value in enumerate(medians, 1)},
        "soak memory, most, MiB": max(mib for _, mib in held),
        "soak slope after the first fifth, MiB a minute": 60 * slope,
    }


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def in_a_process_of_its_own(function: Callable[..., Rates], *given: Any) -> Rates:
    """So that its memory is the engine's and nothing else's."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *given).result()


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
                if INT8 in rates:
                    ratio = rates[INT8][what] / rates[peer][what]
                    found.append((f"{what}, int8, over {peer}", ratio, "≥ 3.3" if bar == "≥ 2" else ""))
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
    parser.add_argument("--llama", action="store_true", help="measure llama.cpp too")
    parser.add_argument("--llama-environment", type=Path, default=Path("build/llama-environment"))
    parser.add_argument("--identity", type=int, default=0, help="prompts whose float32 answers are compared")
    parser.add_argument("--no-first-token", action="store_true", help="leave out the time to the first token")
    parser.add_argument("--cost", type=int, default=0, help="rows whose perplexity is taken in each precision")
    parser.add_argument("--soak", type=float, default=0, help="seconds with 64 clients at the end")
    parser.add_argument("--sweep", type=float, default=0, help="seconds with each number of adapters, 1 to 1,000")
    parser.add_argument("--ours-only", action="store_true")
    parser.add_argument("--processor-seconds", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    show_processor()
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
        small = None
        if compiled_panels() is not None:
            small = Ours(base, torch.bfloat16, keys, int8=True)
            measured[INT8] = lambda seed: our_rates(small, given, seed, clock)
        other = None
        if given.llama:
            gguf = Path(folder) / "merged.gguf"
            write_gguf(Path(base.folder), read_adapter(Path(keys[0].folder)), gguf, F16, "merged", "")
            other = LlamaCpp(gguf, given)
            measured["llama.cpp F16"] = lambda seed: other.rates(given, seed)
        rounds: dict[str, list[Rates]] = {name: [] for name in measured}
        for seed in range(-1, given.rounds):
            for name, measure in measured.items():
                found = measure(seed)
                rounds[name] += [found] if seed >= 0 else []  # the first round warms up
        rates = {
            name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in rounds.items()
        }
        if other is not None:
            other.close()
        if not given.no_first_token:
            rates["ours"] |= first_token_seconds(base, keys, given)
        if given.identity:
            rates["ours"] |= same_answers(base, keys, given)
        if given.cost:
            rates["ours"] |= int8_cost(base, given.cost)
        if given.sweep:
            rates["ours"] |= sweep(base, keys, given.sweep, given.threads)
        if given.soak:
            rates["ours"] |= in_a_process_of_its_own(soak, base, keys, given.soak, given.threads)
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

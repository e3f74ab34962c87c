"""`make demo TASK=preference`: from nothing to a model that answers tersely, through the official clients.

As `demo.py`, with preference tuning: the pairs of `preference/` go to a bucket, google-genai makes the job, and base
and tuned model answer the same held-out questions. Ends with 0 only if the stated margins are met.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from demo import BASE_MODEL, HERE, authorized, console, genai_client, running_service, tune, upload
from demo import Service as RunningService
from google import genai
from google.genai import types
from preference.score import Pair, Score, read_pairs, score
from rich.table import Table
from rich.text import Text

from sarto.cli.output import duration

DATA, BUCKET = HERE / "preference", "demo-preference"
EPOCHS, BETA, RATE_MULTIPLIER = 3, 0.1, 4.0
LEAST_ACCURACY, MOST_WORDS_SHARE = 0.8, 0.6
"""Of the held-out pairs the tuned model prefers so many rightly; its answers have at most this share of the words."""
ANSWER_TOKENS = 160
SHOWN = 5


def ask_all(client: genai.Client, model: str, pairs: Sequence[Pair]) -> list[str]:
    """The model's greedy answers in the order of the pairs."""

    def ask(pair: Pair) -> str:
        config = types.GenerateContentConfig(
            system_instruction=pair.system, temperature=0, max_output_tokens=ANSWER_TOKENS
        )
        return client.models.generate_content(model=model, contents=pair.question, config=config).text or ""

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(ask, pairs))


def reward_accuracy(service: RunningService, job: types.TuningJob) -> tuple[float, float, float, int]:
    """Share of the validation pairs that the tuned model prefers rightly, its interval, and the number of pairs."""
    report = authorized(service).get(f"{service.url}/v1/{job.name}/evaluation", timeout=30).json()
    found = report["systems"][-1]["preference"]
    return found["mean"], found["interval"]["low"], found["interval"]["high"], found["rows"]


def show(pairs: Sequence[Pair], base: Sequence[str], tuned: Sequence[str]) -> None:
    table = Table(show_lines=True, expand=True)
    for title, ratio in (("Question", 3), ("Base model", 6), ("Tuned model", 4)):
        table.add_column(title, ratio=ratio, overflow="fold")
    for pair, *answers in list(zip(pairs, base, tuned, strict=True))[:SHOWN]:
        table.add_row(*(Text(text.strip()[:400]) for text in (pair.question, *answers)))
    console.print(table)


def show_scores(base: Score, tuned: Score) -> None:
    table = Table(title=f"All {tuned.answers} held-out questions", title_justify="left", title_style="bold")
    for title in ("", "Base model", "Tuned model"):
        table.add_column(title, justify="right" if title else "left")
    table.add_row("words an answer", f"{base.mean_words:.1f}", f"{tuned.mean_words:.1f}", style="bold")
    table.add_row("answers of at most 30 words", f"{base.short:.0%}", f"{tuned.short:.0%}")
    table.add_row("answers with a phrase of courtesy", f"{base.courteous:.0%}", f"{tuned.courteous:.0%}")
    console.print(table)


def main() -> int:
    warnings.filterwarnings("ignore", category=genai.errors.ExperimentalWarning)
    pairs = read_pairs(DATA / "test.jsonl")
    console.print("[bold]1  Starting the service[/bold]")
    with running_service() as service:
        client = genai_client(service)
        console.print("[bold]2  Uploading the pairs with google-cloud-storage[/bold]")
        uris = upload(service, DATA, BUCKET)
        console.print(f"[bold]3  Preference tuning of {BASE_MODEL} with google-genai[/bold]")
        started = time.monotonic()
        config = types.CreateTuningJobConfig(
            method=types.TuningMethod.PREFERENCE_TUNING,
            tuned_model_display_name="terse",
            epoch_count=EPOCHS,
            beta=BETA,
            learning_rate_multiplier=RATE_MULTIPLIER,
        )
        job = tune(client, service, uris, config)
        console.print(f"  tuned in {duration(time.monotonic() - started)}")
        console.print(f"[bold]4  Asking base and tuned model {len(pairs)} questions they have never seen[/bold]")
        assert job.tuned_model is not None and job.tuned_model.endpoint is not None
        base_answers = ask_all(client, BASE_MODEL, pairs)
        tuned_answers = ask_all(client, job.tuned_model.endpoint, pairs)
        accuracy = reward_accuracy(service, job)
    show(pairs, base_answers, tuned_answers)
    base, tuned = score(base_answers), score(tuned_answers)
    show_scores(base, tuned)
    return verdict(base, tuned, *accuracy)


def verdict(base: Score, tuned: Score, accuracy: float, low: float, high: float, count: int) -> int:
    """Exit status: 0 only when both margins are met."""
    share = tuned.mean_words / base.mean_words
    won = accuracy >= LEAST_ACCURACY and share <= MOST_WORDS_SHARE
    wanted = f"{LEAST_ACCURACY:.0%} of the held-out pairs, {MOST_WORDS_SHARE:.0%} of the words"
    measured = f"{accuracy:.0%} of {count} pairs ({low:.0%} to {high:.0%}), {share:.0%} of the words"
    word = Text("Passed", style="bold green") if won else Text("Failed", style="bold red")
    console.print(word, f"Wanted: {wanted}. Measured: {measured}.")
    return 0 if won else 1


if __name__ == "__main__":
    sys.exit(main())

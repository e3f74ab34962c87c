"""`make demo TASK=distillation`: from nothing to a student of a tuned teacher, through the official clients.

The teacher is tuned on the support tickets, as in `demo.py`. It answers the tickets of `distillation/`, which have no
records, and a fresh student is tuned on its answers. Base, teacher and student file the same held-out tickets. Ends
with 0 only if the student comes as near to its teacher as stated.
"""

from __future__ import annotations

import sys
import time
import warnings

from demo import (
    ADAPTER_SIZE,
    BASE_MODEL,
    BUCKET,
    DATA,
    EPOCHS,
    HERE,
    RATE_MULTIPLIER,
    ask_all,
    authorized,
    console,
    genai_client,
    running_service,
    tune,
    upload,
)
from demo import Service as RunningService
from google import genai
from google.cloud import storage
from google.genai import types
from rich.table import Table
from rich.text import Text
from support_tickets.score import Score, read_rows, score

from sarto.cli.output import duration

PROMPTS = HERE / "distillation" / "train.jsonl"
STUDENT_EPOCHS = 4
LEAST_SHARE = 0.8
"""Share of the teacher's right fields that the student has to reach."""
LABELLED = "The labelled data is at "


def upload_prompts(service: RunningService) -> str:
    client = storage.Client(
        project=service.project, credentials=service.credentials, client_options={"api_endpoint": service.url}
    )
    client.bucket(BUCKET).blob("prompts.jsonl").upload_from_filename(str(PROMPTS))
    return f"gs://{BUCKET}/prompts.jsonl"


def show_labels(service: RunningService, job: types.TuningJob) -> None:
    """Where the teacher's answers are."""
    events = authorized(service).get(f"{service.url}/v1/{job.name}/events", timeout=30).json()["events"]
    console.print(*(f"  {event['message']}" for event in events if event["message"].startswith(LABELLED)))


def show_scores(scores: dict[str, Score]) -> None:
    count = next(iter(scores.values())).rows
    table = Table(title=f"All {count} held-out tickets", title_justify="left", title_style="bold")
    table.add_column("")
    for title in scores:
        table.add_column(title, justify="right")
    table.add_row("valid JSON record", *(f"{each.valid:.0%}" for each in scores.values()))
    table.add_row("fields right", *(f"{each.fields:.1%}" for each in scores.values()), style="bold")
    table.add_row("whole records right", *(f"{each.whole:.1%}" for each in scores.values()))
    console.print(table)


def main() -> int:
    warnings.filterwarnings("ignore", category=genai.errors.ExperimentalWarning)
    rows = read_rows(DATA / "test.jsonl")
    console.print("[bold]1  Starting the service[/bold]")
    with running_service() as service:
        client = genai_client(service)
        console.print("[bold]2  Uploading tickets and prompts with google-cloud-storage[/bold]")
        uris = upload(service, DATA, BUCKET)
        prompts = upload_prompts(service)
        console.print(f"[bold]3  Tuning the teacher, {BASE_MODEL}, on tickets with records[/bold]")
        shared = {
            "adapter_size": types.AdapterSize(ADAPTER_SIZE),
            "learning_rate_multiplier": RATE_MULTIPLIER,
            "export_last_checkpoint_only": True,
        }
        started = time.monotonic()
        config = types.CreateTuningJobConfig(tuned_model_display_name="teacher", epoch_count=EPOCHS, **shared)
        teacher = tune(client, service, uris, config)
        assert teacher.tuned_model is not None and teacher.tuned_model.endpoint is not None
        console.print(f"  tuned in {duration(time.monotonic() - started)}")
        console.print("[bold]4  Distilling a fresh student from prompts alone[/bold]")
        started = time.monotonic()
        config = types.CreateTuningJobConfig(
            method=types.TuningMethod.DISTILLATION,
            tuned_teacher_model_source=teacher.tuned_model.model,
            tuned_model_display_name="student",
            epoch_count=STUDENT_EPOCHS,
            **shared,
        )
        student = tune(client, service, uris | {"train": prompts}, config)
        assert student.tuned_model is not None and student.tuned_model.endpoint is not None
        console.print(f"  labelled and tuned in {duration(time.monotonic() - started)}")
        show_labels(service, student)
        console.print(f"[bold]5  Asking all three about {len(rows)} tickets they have never seen[/bold]")
        models = {
            "Base": BASE_MODEL, "Teacher": teacher.tuned_model.endpoint, "Student": student.tuned_model.endpoint,
        }  # fmt: skip
        wanted = [row.record for row in rows]
        scores = {name: score(ask_all(client, model, rows), wanted) for name, model in models.items()}
    show_scores(scores)
    return verdict(scores["Base"], scores["Teacher"], scores["Student"])


def verdict(base: Score, teacher: Score, student: Score) -> int:
    """Exit status: 0 only if the student reaches its share of the teacher's right fields, and more than the base."""
    share = student.fields / teacher.fields if teacher.fields else 0.0
    won = share >= LEAST_SHARE and student.fields > base.fields
    word = Text("Passed", style="bold green") if won else Text("Failed", style="bold red")
    console.print(word, f"Wanted: {LEAST_SHARE:.0%} of the teacher's right fields. Measured: {share:.0%}.")
    return 0 if won else 1


if __name__ == "__main__":
    sys.exit(main())

"""`make demo`: from nothing to a tuned model that answers better than its base, through the official clients.

Starts the service as a child on a free port with its own home, uploads the support tickets, tunes, asks base and tuned
model the same held-out tickets, and ends with 0 only if the tuned model wins by the stated margin. The clients are
google-genai and google-cloud-storage as anybody installs them; only their base URL differs from the documentation.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from google import genai
from google.auth.transport.requests import AuthorizedSession
from google.cloud import storage
from google.genai import types
from google.oauth2 import service_account
from rich.console import Console
from rich.table import Table
from rich.text import Text
from support_tickets.score import Row, Score, matches, read_rows, score

from sarto.catalog import Catalog
from sarto.cli import progress
from sarto.cli.output import duration

HERE = Path(__file__).parent
DATA = HERE / "support_tickets"
HOME = HERE.parent / ".home" / "demo"
BASE_MODEL, LOCATION, BUCKET = "gemini-2.0-flash-001", "us-central1", "demo-tickets"
EPOCHS, ADAPTER_SIZE, RATE_MULTIPLIER = 2, "ADAPTER_SIZE_EIGHT", 6.0
MARGIN_WHOLE, MARGIN_FIELDS = 0.25, 0.60
SHOWN = 6
START_SECONDS = 60.0

console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Service:
    """The running service and who we are there."""

    url: str
    credentials: service_account.Credentials
    project: str


@contextlib.contextmanager
def running_service() -> Iterator[Service]:
    """`sarto serve` as a child on a free port; ended when the block is left, however it is left."""
    HOME.mkdir(parents=True, exist_ok=True)
    address, log = HOME / "address", HOME / "demo.log"
    address.unlink(missing_ok=True)
    with log.open("w") as out:
        command = [str(Path(sys.executable).with_name("sarto")), "serve", "--home", str(HOME), "--port", "0"]
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        wait_for(address, child, log)
        key = HOME / "credentials" / "admin.json"
        scopes = ["https://www.googleapis.com/auth/cloud-platform"]
        credentials = service_account.Credentials.from_service_account_file(  # type: ignore[no-untyped-call]
            str(key), scopes=scopes
        )
        yield Service(address.read_text().strip(), credentials, credentials.project_id)
    finally:
        child.terminate()
        try:
            child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def wait_for(address: Path, child: subprocess.Popen[bytes], log: Path) -> None:
    """Until the service has written where it is; when it does not come up, end with the service's own words."""
    end = time.monotonic() + START_SECONDS
    while not address.exists():
        if child.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"The service did not start:\n{log.read_text(errors='replace')}")
        time.sleep(0.1)


def authorized(service: Service) -> AuthorizedSession:
    """Plain HTTP with our token, for what the clients do not show."""
    return AuthorizedSession(service.credentials)  # type: ignore[no-untyped-call]


def genai_client(service: Service) -> genai.Client:
    return genai.Client(
        vertexai=True,
        project=service.project,
        location=LOCATION,
        credentials=service.credentials,
        http_options=types.HttpOptions(base_url=service.url),
    )


def upload(service: Service, folder: Path, name: str) -> dict[str, str]:
    """Training and validation file of a folder to a bucket; their gs:// URIs."""
    client = storage.Client(
        project=service.project, credentials=service.credentials, client_options={"api_endpoint": service.url}
    )
    bucket = client.lookup_bucket(name) or client.create_bucket(name, location=LOCATION)
    uris = {}
    for split in ("train", "validation"):
        bucket.blob(f"{split}.jsonl").upload_from_filename(str(folder / f"{split}.jsonl"))
        uris[split] = f"gs://{name}/{split}.jsonl"
    return uris


def tune(
    client: genai.Client, service: Service, uris: dict[str, str], config: types.CreateTuningJobConfig
) -> types.TuningJob:
    """Create the job with the official client and follow the job resource until it has succeeded."""
    config.validation_dataset = types.TuningValidationDataset(gcs_uri=uris["validation"])
    job = client.tunings.tune(
        base_model=BASE_MODEL, training_dataset=types.TuningDataset(gcs_uri=uris["train"]), config=config
    )
    assert job.name is not None
    console.print(f"  {job.name}")
    session = authorized(service)  # the resource as it is: this client's types leave some of it out

    def states() -> Iterator[progress.Change]:
        while True:
            answer = session.get(f"{service.url}/v1beta1/{job.name}", timeout=30)
            answer.raise_for_status()
            yield progress.Change(answer.json())
            time.sleep(1.0)

    ended = progress.watch(states(), console)
    if ended["state"] != "JOB_STATE_SUCCEEDED":
        raise SystemExit(
            f"The job ended as {ended['state']}: {ended.get('error', {}).get('message', 'no reason given')}"
        )
    return client.tunings.get(name=job.name)


def ask_all(client: genai.Client, model: str, rows: Sequence[Row]) -> list[str]:
    """The model's answers, in the order of the rows; several questions are in flight at once."""

    def ask(row: Row) -> str:
        config = types.GenerateContentConfig(system_instruction=row.system, temperature=0, max_output_tokens=64)
        return client.models.generate_content(model=model, contents=row.ticket, config=config).text or ""

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(ask, rows))


def compare(rows: Sequence[Row], base: Sequence[str], tuned: Sequence[str]) -> None:
    """A few held-out tickets with both answers; what matches the wanted record is green, what does not red."""
    table = Table(show_lines=True, expand=True)
    for title, ratio in (("Ticket", 5), ("Base model", 4), ("Tuned model", 4)):
        table.add_column(title, ratio=ratio, overflow="fold")
    for row, *answers in list(zip(rows, base, tuned, strict=True))[:SHOWN]:
        cells = [Text(row.ticket)]
        for answer in answers:
            right = all(matches(answer, row.record).values())
            cells.append(Text(answer.strip()[:240], style="green" if right else "red"))
        table.add_row(*cells)
    console.print(table)


def show_scores(base: Score, tuned: Score) -> None:
    table = Table(title=f"All {tuned.rows} held-out tickets", title_justify="left", title_style="bold")
    for title in ("", "Base model", "Tuned model"):
        table.add_column(title, justify="right" if title else "left")
    table.add_row("valid JSON record", f"{base.valid:.0%}", f"{tuned.valid:.0%}")
    for field in base.by_field:
        table.add_row(f"  {field}", f"{base.by_field[field]:.0%}", f"{tuned.by_field[field]:.0%}", style="dim")
    table.add_row("fields right", f"{base.fields:.1%}", f"{tuned.fields:.1%}")
    table.add_row("whole records right", f"{base.whole:.1%}", f"{tuned.whole:.1%}", style="bold")
    console.print(table)


def fetch_adapter(service: Service, job: types.TuningJob) -> None:
    """Say where the adapter is, and copy the last checkpoint's files next to the demo's home."""
    assert job.tuned_model is not None and job.tuned_model.model is not None
    model = authorized(service).get(f"{service.url}/v1/{job.tuned_model.model}", timeout=30).json()
    uri = model["artifactUri"].rstrip("/")
    bucket, _, prefix = uri.removeprefix("gs://").partition("/")
    client = storage.Client(
        project=service.project, credentials=service.credentials, client_options={"api_endpoint": service.url}
    )
    folder = HOME / "adapter"
    for blob in client.list_blobs(bucket, prefix=prefix):
        target = folder / blob.name.removeprefix(prefix).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        blob.download_to_filename(str(target))
    console.print(f"  {uri}  (every checkpoint, in PEFT's format)")
    console.print(f"  copied to {folder.relative_to(HERE.parent)}")


def how_to(job: types.TuningJob) -> str:
    assert job.tuned_model is not None and job.tuned_model.endpoint is not None
    text = (HERE / "snippets.txt").read_text(encoding="utf-8")
    return text.replace("{endpoint}", job.tuned_model.endpoint.rsplit("/", 1)[-1])


def main() -> int:
    warnings.filterwarnings("ignore", category=genai.errors.ExperimentalWarning)
    rows = read_rows(DATA / "test.jsonl")
    weights = Catalog.load().find(BASE_MODEL).weights
    console.print(f"[bold]1  Installed[/bold]\n  {BASE_MODEL} stands for {weights.title} ({weights.license}) here")
    console.print("[bold]2  Starting the service[/bold]")
    with running_service() as service:
        console.print(f"  {service.url}, home {HOME.relative_to(HERE.parent)}, project {service.project}")
        client = genai_client(service)
        console.print("[bold]3  Uploading the support tickets with google-cloud-storage[/bold]")
        uris = upload(service, DATA, BUCKET)
        console.print(f"  {uris['train']}\n  {uris['validation']}")
        console.print(f"[bold]4  Tuning {BASE_MODEL} with google-genai[/bold]")
        started = time.monotonic()
        job = tune(
            client,
            service,
            uris,
            types.CreateTuningJobConfig(
                tuned_model_display_name="support-tickets",
                epoch_count=EPOCHS,
                adapter_size=types.AdapterSize(ADAPTER_SIZE),
                learning_rate_multiplier=RATE_MULTIPLIER,
            ),
        )
        console.print(f"  tuned in {duration(time.monotonic() - started)}")
        console.print(f"[bold]5  Asking base and tuned model {len(rows)} tickets they have never seen[/bold]")
        assert job.tuned_model is not None and job.tuned_model.endpoint is not None
        base_answers = ask_all(client, BASE_MODEL, rows)
        tuned_answers = ask_all(client, job.tuned_model.endpoint, rows)
        compare(rows, base_answers, tuned_answers)
        wanted = [row.record for row in rows]
        base, tuned = score(base_answers, wanted), score(tuned_answers, wanted)
        show_scores(base, tuned)
        console.print("[bold]6  The adapter[/bold]")
        fetch_adapter(service, job)
    console.print("[bold]The same from your own code[/bold]")
    console.print(Text(how_to(job)))
    return verdict(base, tuned)


def verdict(base: Score, tuned: Score) -> int:
    """Exit status: 0 only when both margins are met."""
    won = tuned.whole - base.whole >= MARGIN_WHOLE and tuned.fields - base.fields >= MARGIN_FIELDS
    margin = f"{MARGIN_WHOLE:.0%} more whole records and {MARGIN_FIELDS:.0%} more fields"
    gained = f"{tuned.whole - base.whole:+.1%} whole records, {tuned.fields - base.fields:+.1%} fields"
    word = Text("Passed", style="bold green") if won else Text("Failed", style="bold red")
    console.print(word, f"The margin asked for: {margin}. Measured: {gained}.")
    return 0 if won else 1


if __name__ == "__main__":
    sys.exit(main())

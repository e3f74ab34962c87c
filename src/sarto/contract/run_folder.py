"""Names of the places, files and folders that cross between control and engine. Each is defined here only."""

from __future__ import annotations

HOME, MODELS, UNSEALED = "home", "models", "unsealed"
"""The data folder; base weights of the catalogue; files that are sealed in `home`, in the open."""
WORKSPACE, TOKENS = "workspace", "tokens"
"""Of one job or operation: the files it works on, and the token cache of its project."""
PLACES = (HOME, MODELS, UNSEALED, WORKSPACE, TOKENS)

SPEC_FILE, RESULT_FILE, LOG_FILE = "spec.json", "result.json", "log.txt"
"""In the folder of every run: its input, its output (written last and whole), and what it prints."""

# A tuning run. Its workspace has a run folder for each lease epoch, and these for all of them.
DATA_FOLDER, RESUME_FOLDER, BASE_FOLDER = "data", "resume", "base"
"""The pinned datasets; what the next attempt continues from; a hub snapshot that the base is made from."""
RESUME_FILE = "resume.safetensors"
"""In the resume folder. It refers to the other files there, so it is copied after them."""
EVALUATION_FOLDER = "evaluation"
"""In the resume folder, so that a later attempt uses its answers again; in the run folder if there is none."""
ANSWERS_FOLDER, LABELLED_FOLDER = "answers", "labelled"
"""In the resume folder of a distillation: the teacher's answers as they come, and the datasets made from them."""
PROGRESS_FILE = "progress.jsonl"
CHECKPOINTS_FOLDER = "checkpoints"
REPORT_FILE = "data_report.json"
"""In the run folder, once the data was read."""
PAST_RUN = "forecast"
"""Key of a `PastRun` in the parameter details of a run that was not interrupted."""

ASKED_FILE, ANSWERED_FILE = "asked.jsonl", "answered.jsonl"
"""In the folder of a run: its requests to models elsewhere, and the responses."""

# Exports and evaluations, whose workspace is their folder.
OPERATION_PROGRESS_FILE = "progress.json"
EXPORT_FOLDER, HELD_OUT_FILE = "files", "held_out.jsonl"
OUTPUT_FOLDER, ROWS_FILE = "out", "rows.jsonl"

EVALUATION_REPORT_FOLDER = "report"
REPORT_JSON_FILE, REPORT_PAGE_FILE = "report.json", "report.html"
"""The standard report, in the report folder of an evaluation."""


def in_workspace(*parts: str | int) -> str:
    """The name of a file of the workspace in a spec."""
    return "/".join([WORKSPACE, *map(str, parts)])

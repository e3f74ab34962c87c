"""The `sarto` program against a real server: what it prints, what it exits with, and that nothing is sent twice."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from tests.cli.conftest import Run, Server


def test_version_is_printed(sarto: Run) -> None:
    done = sarto("version")
    assert (done.returncode, done.stdout) == (0, "0.1.0\n")


def test_an_access_token_opens_the_api(sarto: Run, server: Server) -> None:
    token = sarto("auth", "print-access-token").stdout.strip()
    path = f"{server.url}/v1/projects/demo/locations/us-central1/tuningJobs"
    assert httpx.get(path, headers={"Authorization": f"Bearer {token}"}).status_code == 200
    assert httpx.get(path).status_code == 401


def test_an_api_key_is_made_listed_and_revoked(sarto: Run, server: Server) -> None:
    bearer = sarto("auth", "api-key", "create", "--name", "laptop", "--days", "2").stdout.strip()
    headers = {"Authorization": f"Bearer {bearer}"}
    jobs = f"{server.url}/openai/v1/fine_tuning/jobs"
    assert bearer.startswith("sk-sarto-") and httpx.get(jobs, headers=headers).status_code == 200
    listed = json.loads(sarto("auth", "api-key", "list", "--json").stdout)
    assert [one["displayName"] for one in listed] == ["laptop"] and bearer not in str(listed)
    assert listed[0]["uid"] in sarto("auth", "api-key", "list").stdout
    assert sarto("auth", "api-key", "revoke", listed[0]["uid"]).returncode == 0
    refused = httpx.get(jobs, headers=headers)
    assert refused.status_code == 401 and refused.json()["error"]["type"] == "authentication_error"
    assert "does not exist" in sarto("auth", "api-key", "revoke", listed[0]["uid"]).stderr


def test_projects_are_created_and_listed(sarto: Run) -> None:
    done = sarto("projects", "create", "second-project")
    assert done.returncode == 0
    assert "second-project" in done.stdout
    listed = json.loads(sarto("projects", "list", "--json").stdout)
    assert {"demo", "second-project"} <= {project["projectId"] for project in listed}
    assert "NUMBER" in sarto("projects", "list").stdout
    again = sarto("projects", "create", "second-project")
    assert again.returncode == 1
    assert "already exists" in again.stderr


def test_a_quota_is_shown_given_and_taken_away(sarto: Run) -> None:
    assert "1 (the server's default)" in sarto("projects", "quota", "demo").stdout
    assert "3 (the project's own)" in sarto("projects", "quota", "demo", "--concurrent-jobs", "3").stdout
    assert json.loads(sarto("projects", "quota", "demo", "--json").stdout)["concurrentJobs"] == 3
    assert "default" in sarto("projects", "quota", "demo", "--default").stdout


def test_base_models_show_their_real_weights(sarto: Run) -> None:
    done = sarto("models", "list", "--base")
    row = next(line for line in done.stdout.splitlines() if line.startswith("gemini-2.0-flash-001"))
    assert "Tiny" in row


def test_an_empty_list_says_what_to_do_and_prints_no_table(sarto: Run) -> None:
    done = sarto("--location", "europe-west4", "jobs", "list")
    assert (done.returncode, done.stdout) == (0, "")
    assert "sarto tune" in done.stderr
    assert json.loads(sarto("--location", "europe-west4", "jobs", "list", "--json").stdout) == []


def test_a_server_that_is_not_there_is_named(sarto: Run) -> None:
    done = sarto("--token", "t", "--project", "demo", "jobs", "list", SARTO_URL="http://127.0.0.1:9")
    assert done.returncode == 1
    assert "127.0.0.1:9" in done.stderr
    assert "sarto serve" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_key_says_where_one_comes_from(sarto: Run) -> None:
    done = sarto("jobs", "list", GOOGLE_APPLICATION_CREDENTIALS="nowhere.json")
    assert done.returncode == 1
    assert "nowhere.json" in done.stderr
    assert "sarto serve" in done.stderr


def test_a_file_that_is_no_key_is_refused(sarto: Run, tmp_path: Path) -> None:
    (tmp_path / "key.json").write_text("{}")
    done = sarto("jobs", "list", GOOGLE_APPLICATION_CREDENTIALS="key.json")
    assert done.returncode == 2
    assert "not a service account key" in done.stderr


@pytest.mark.parametrize("issuer", ["https://oauth2.googleapis.com/token", "http://127.0.0.1:9/token"])
def test_a_key_of_another_server_is_refused_and_nothing_is_sent(
    sarto: Run, server: Server, tmp_path: Path, issuer: str
) -> None:
    key = json.loads(server.key_file.read_text()) | {"token_uri": issuer}
    (tmp_path / "key.json").write_text(json.dumps(key))
    done = sarto("jobs", "list", GOOGLE_APPLICATION_CREDENTIALS="key.json")
    assert done.returncode == 1
    assert issuer in done.stderr and "nothing was sent" in done.stderr
    assert "GOOGLE_APPLICATION_CREDENTIALS" in done.stderr


def test_the_source_of_an_external_account_of_another_server_is_not_read(sarto: Run, tmp_path: Path) -> None:
    external = {
        "type": "external_account",
        "subject_token_type": "urn:ietf:params:oauth:token-type:id_token",
        "token_url": "https://sts.googleapis.com/v1/token",
        "credential_source": {"file": str(tmp_path / "missing")},
    }
    (tmp_path / "external.json").write_text(json.dumps(external))
    done = sarto("--credentials", "external.json", "--project", "demo", "jobs", "list")
    assert done.returncode == 1 and "nothing was sent" in done.stderr and "cannot be read" not in done.stderr


def test_a_token_or_an_external_account_takes_the_place_of_a_key(sarto: Run, server: Server, tmp_path: Path) -> None:
    token = sarto("auth", "print-access-token").stdout.strip()
    nowhere = {"GOOGLE_APPLICATION_CREDENTIALS": "nowhere.json"}
    listed = sarto("--project", "demo", "projects", "list", "--json", SARTO_TOKEN=token, **nowhere)
    assert listed.returncode == 0 and json.loads(listed.stdout)
    assert "--project" in sarto("jobs", "list", SARTO_TOKEN=token, **nowhere).stderr
    (tmp_path / "subject").write_text(json.dumps({"id_token": token}))
    external = {
        "type": "external_account",
        "audience": "sarto",
        "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "token_url": f"{server.url}/sts/token",
        "credential_source": {
            "file": str(tmp_path / "subject"),
            "format": {"type": "json", "subject_token_field_name": "id_token"},
        },
    }
    (tmp_path / "external.json").write_text(json.dumps(external))
    done = sarto("--credentials", "external.json", "--project", "demo", "projects", "list", "--json")
    assert (done.returncode, done.stdout) == (0, listed.stdout)


def test_a_prompt_that_is_not_utf8_is_refused_by_name(sarto: Run) -> None:
    done = sarto("chat", "gemini-2.0-flash-001", "caf\udce9")
    assert done.returncode == 2 and "not UTF-8" in done.stderr and "Traceback" not in done.stderr


def test_a_damaged_private_key_is_named(sarto: Run, server: Server, tmp_path: Path) -> None:
    key = json.loads(server.key_file.read_text()) | {"private_key": "-----BEGIN PRIVATE KEY-----\nx\n"}
    (tmp_path / "key.json").write_text(json.dumps(key))
    done = sarto("jobs", "list", GOOGLE_APPLICATION_CREDENTIALS="key.json")
    assert done.returncode == 2 and "damaged" in done.stderr and "Traceback" not in done.stderr


def test_tables_in_a_pipe_have_a_row_a_line_and_cut_nothing(sarto: Run) -> None:
    head, *rows = sarto("models", "list", "--base", COLUMNS="40").stdout.splitlines()
    assert head == "MODEL\tABOUT"
    assert all(row.count("\t") == 1 for row in rows) and any(row.startswith("gemini-2.0-flash-001\t") for row in rows)
    number = json.loads(sarto("projects", "list", "--json").stdout)[0]["projectNumber"]
    assert number in sarto("projects", "list", COLUMNS="20").stdout


def test_reports_that_cannot_be_written_are_refused_before_a_model_answers(sarto: Run, tickets: Path) -> None:
    for option, file in (("--html", "missing/x.html"), ("--jsonl", ".")):
        done = sarto("eval", "gemini-2.0-flash-001", "--data", str(tickets), option, file)
        assert done.returncode == 2 and file in done.stderr and "answer" not in done.stdout


def test_every_violation_of_a_request_is_listed(sarto: Run, tickets: Path) -> None:
    done = sarto("tune", str(tickets), "--model", "gemini-9", "--name", "x" * 129, "--no-watch")
    assert done.returncode == 2
    assert "base_model" in done.stderr
    assert "tuned_model_display_name" in done.stderr
    assert done.stdout == ""


def test_an_unknown_project_and_a_foreign_job_are_errors(sarto: Run) -> None:
    assert "may not exist" in sarto("--project", "nobody-here", "jobs", "list").stderr
    done = sarto("jobs", "describe", "7")
    assert done.returncode == 1
    assert "7" in done.stderr


def test_wrong_usage_exits_with_two(sarto: Run, tickets: Path) -> None:
    assert sarto("tune").returncode == 2
    assert sarto("tune", "missing.jsonl").returncode == 2
    assert sarto("tune", str(tickets), "--adapter-size", "3").returncode == 2
    assert sarto("tune", str(tickets), "--label", "novalue").returncode == 2
    assert sarto("tune", str(tickets), "--checkpoint", "1").returncode == 2


def test_a_dataset_is_uploaded_once_under_its_content(sarto: Run, server: Server, tickets: Path) -> None:
    first = json.loads(sarto("tune", str(tickets), "--epochs", "1", "--no-watch", "--json").stdout)
    second = json.loads(sarto("tune", str(tickets), "--epochs", "1", "--no-watch", "--json").stdout)
    uri = first["supervisedTuningSpec"]["trainingDatasetUri"]
    assert uri == second["supervisedTuningSpec"]["trainingDatasetUri"]
    assert uri.startswith("gs://demo-datasets/")
    token = sarto("auth", "print-access-token").stdout.strip()
    listed = httpx.get(
        f"{server.url}/storage/v1/b/demo-datasets/o", headers={"Authorization": f"Bearer {token}"}
    ).json()
    names = [item["name"] for item in listed["items"] if uri.endswith(item["name"])]
    assert len(names) == 1
    for job in (first, second):
        sarto("jobs", "cancel", job["name"])


def test_a_token_of_another_account_has_the_rights_of_that_account(sarto: Run, server: Server) -> None:
    email = "robot-account@demo.iam.gserviceaccount.com"
    assert sarto("iam", "accounts", "create", "robot-account").returncode == 0
    token = sarto("auth", "print-access-token", "--impersonate-service-account", email).stdout.strip()
    url = f"{server.url}/v1/projects/demo/locations/us-central1/tuningJobs"
    headers = {"Authorization": f"Bearer {token}"}
    assert httpx.get(url, headers=headers).status_code == 403
    assert sarto("iam", "bind", f"serviceAccount:{email}", "roles/aiplatform.viewer").returncode == 0
    assert httpx.get(url, headers=headers).status_code == 200
    unknown = sarto("auth", "print-access-token", "--impersonate-service-account", "x@demo.iam.gserviceaccount.com")
    assert unknown.returncode == 1 and "does not exist" in unknown.stderr


def test_the_whole_way_from_a_file_to_an_answer(sarto: Run, tickets: Path) -> None:
    done = sarto(
        "tune", str(tickets), "--validation", str(tickets), "--epochs", "2", "--name", "numbers", "--label", "team=x"
    )
    assert done.returncode == 0, done.stderr
    assert "succeeded" in done.stderr
    endpoint = next(line.split()[-1] for line in done.stdout.splitlines() if line.startswith("Talk to it"))
    assert "Checkpoint 2" in done.stdout
    answer = sarto("chat", endpoint, "say 3", "--temperature", "0", "--max-output-tokens", "4")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.endswith("\n")
    talk = sarto("chat", "gemini-2.0-flash-001", "--max-output-tokens", "4", stdin="hello\nand again\n\n")
    assert talk.returncode == 0, talk.stderr
    listed = json.loads(sarto("models", "list", "--json").stdout)
    assert "numbers" in [model["displayName"] for model in listed]
    row = sarto("jobs", "list", "--filter", 'labels.team="x"').stdout.splitlines()[1]
    assert "SUCCEEDED" in row


def test_a_job_that_fails_says_why_and_exits_with_one(sarto: Run, tmp_path: Path) -> None:
    rows = [
        '{"contents": [{"role": "user", "parts": [{"text": "a"}]}, {"role": "model", "parts": [{"text": "b"}]}]}'
    ] * 8
    path = tmp_path / "late.jsonl"
    path.write_text("\n".join([*rows * 200, *["{broken"] * 900]))
    done = sarto("tune", str(path), "--epochs", "1")
    assert done.returncode == 1
    assert "line 1601" in done.stderr


def test_a_dataset_is_checked_without_a_job(sarto: Run, tickets: Path) -> None:
    done = sarto("data", "check", str(tickets), "--validation", str(tickets))
    assert done.returncode == 0, done.stderr
    assert "12, of which 12 can be used" in done.stdout
    assert "validation rows have their prompt in training" in done.stdout
    report = json.loads(sarto("data", "check", str(tickets), "--json").stdout)
    assert report["isUsable"]


def test_data_that_a_job_would_refuse_is_reported_and_exits_with_one(sarto: Run, tickets: Path) -> None:
    with tickets.open("a") as file:
        file.write('{"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}\n' * 3)
    done = sarto("data", "check", str(tickets))
    assert done.returncode == 1
    assert "line 13" in done.stdout
    assert "3 rows cannot be used" in done.stdout


def test_a_row_is_shown_as_training_sees_it(sarto: Run, tickets: Path) -> None:
    done = sarto("data", "show", str(tickets), "--row", "4")
    assert done.returncode == 0, done.stderr
    assert "say 3" in done.stdout.replace("|", "")
    assert "Serving sends the same 62 tokens in front of reply 1." in done.stdout
    assert sarto("data", "show", str(tickets), "--row", "99").returncode == 1


def test_prompts_are_checked_shown_and_sent_with_their_teacher(sarto: Run, tmp_path: Path) -> None:
    rows = [{"contents": [{"role": "user", "parts": [{"text": f"say {number}"}]}]} for number in range(12)]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    checked = sarto("data", "check", str(path), "--method", "distillation")
    assert checked.returncode == 0, checked.stderr
    assert "12, of which 12 can be used" in checked.stdout and "the teacher's answers" in checked.stdout
    shown = sarto("data", "show", str(path), "--method", "distillation", "--row", "2")
    assert shown.returncode == 0 and "0 of them learned" in shown.stdout
    options = ("--method", "distillation", "--teacher", "gemini-2.0-flash-001", "--temperature", "0.5")
    done = sarto("tune", str(path), *options, "--candidates", "2", "--no-watch", "--json")
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)
    spec = job["distillationSpec"]
    assert spec["promptDatasetUri"].endswith(".jsonl") and spec["baseTeacherModel"] == "gemini-2.0-flash-001"
    assert spec["hyperParameters"]["generationConfig"] == {"temperature": 0.5, "candidateCount": 2}
    assert sarto("jobs", "cancel", job["name"]).returncode == 0
    wrong = sarto("tune", str(path), "--method", "distillation", "--no-watch")
    assert wrong.returncode == 2 and "Give one teacher" in wrong.stderr


def test_pairs_are_checked_shown_and_tuned_on(sarto: Run, tmp_path: Path) -> None:
    def content(role: str, text: str) -> dict[str, object]:
        return {"role": role, "parts": [{"text": text}]}

    rows = [
        {
            "contents": [content("user", f"say {number}")],
            "completions": [
                {"score": 0, "completion": content("model", f"Well then: {number}")},
                {"score": 1, "completion": content("model", str(number))},
            ],
        }
        for number in range(12)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    checked = sarto("data", "check", str(path), "--method", "preference")
    assert checked.returncode == 0, checked.stderr
    assert "12, of which 12 can be used" in checked.stdout
    assert "the preferred one is shorter in 100%" in checked.stdout and "beta 0.1" in checked.stdout
    assert sarto("data", "check", str(path)).returncode == 2  # not a row of supervised tuning
    shown = json.loads(sarto("data", "show", str(path), "--method", "preference", "--row", "2", "--json").stdout)
    assert len(shown["training"]) == 2 and shown["isSame"]
    done = sarto("tune", str(path), "--method", "preference", "--beta", "0.3", "--epochs", "1", "--json")
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)
    assert job["preferenceOptimizationSpec"]["hyperParameters"]["beta"] == 0.3
    assert "rewardAccuracy" in job["tuningJobMetadata"]["throughput"]
    wrong = sarto("tune", str(path), "--method", "dpo", "--no-watch")
    assert wrong.returncode == 2 and "preference" in wrong.stderr
    supervised = sarto("tune", str(path), "--beta", "0.3", "--no-watch")
    assert supervised.returncode != 0 and "beta" in supervised.stderr

"""BatchPredictionJob, as in the API. Fields that Sarto does not support are listed, so that they are refused by
name."""

from __future__ import annotations

from pydantic import Field

from sarto.schema.tuning_jobs import EncryptionSpec, JobState, Status
from sarto.schema.wire import Boolean, Int64, Message, Struct, Text, Timestamp


class GcsSource(Message):
    uris: list[Text] = Field(default_factory=list)


class GcsDestination(Message):
    output_uri_prefix: Text = ""


class InputConfig(Message):
    instances_format: Text = ""
    gcs_source: GcsSource | None = None
    bigquery_source: Struct | None = None


class OutputConfig(Message):
    predictions_format: Text = ""
    gcs_destination: GcsDestination | None = None
    bigquery_destination: Struct | None = None


class OutputInfo(Message):
    gcs_output_directory: Text = ""


class CompletionStats(Message):
    successful_count: Int64 | None = None
    failed_count: Int64 | None = None
    incomplete_count: Int64 | None = None


class BatchPredictionJob(Message):
    name: Text = ""
    display_name: Text = ""
    model: Text = ""
    model_version_id: Text = ""
    input_config: InputConfig | None = None
    output_config: OutputConfig | None = None
    labels: dict[str, Text] = Field(default_factory=dict)
    state: JobState | None = None
    error: Status | None = None
    partial_failures: list[Status] = Field(default_factory=list)
    output_info: OutputInfo | None = None
    completion_stats: CompletionStats | None = None
    create_time: Timestamp | None = None
    start_time: Timestamp | None = None
    end_time: Timestamp | None = None
    update_time: Timestamp | None = None
    encryption_spec: EncryptionSpec | None = None
    instance_config: Struct | None = None
    model_parameters: Struct | None = None
    dedicated_resources: Struct | None = None
    manual_batch_tuning_parameters: Struct | None = None
    generate_explanation: Boolean | None = None
    explanation_spec: Struct | None = None
    unmanaged_container_model: Struct | None = None
    service_account: Text = ""
    disable_container_logging: Boolean | None = None


class ListBatchPredictionJobsResponse(Message):
    batch_prediction_jobs: list[BatchPredictionJob] = Field(default_factory=list)
    next_page_token: Text = ""

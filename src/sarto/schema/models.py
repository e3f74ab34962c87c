"""Model, Endpoint and their parts, as in the API."""

from __future__ import annotations

from pydantic import Field

from sarto.schema.tuning_jobs import EncryptionSpec
from sarto.schema.wire import Boolean, Int64, Message, ProtoEnum, Struct, Text, Timestamp


class DeploymentResourcesType(ProtoEnum):
    DEPLOYMENT_RESOURCES_TYPE_UNSPECIFIED = "DEPLOYMENT_RESOURCES_TYPE_UNSPECIFIED"
    DEDICATED_RESOURCES = "DEDICATED_RESOURCES"
    AUTOMATIC_RESOURCES = "AUTOMATIC_RESOURCES"
    SHARED_RESOURCES = "SHARED_RESOURCES"


class Checkpoint(Message):
    checkpoint_id: Text = ""
    epoch: Int64 | None = None
    step: Int64 | None = None


class ArtifactDestination(Message):
    output_uri_prefix: Text = ""


class ExportOutputConfig(Message):
    export_format_id: Text = ""
    artifact_destination: ArtifactDestination | None = None
    image_destination: Struct | None = None


class ExportModelRequest(Message):
    output_config: ExportOutputConfig | None = None
    checkpoint_id: Text = ""
    """Sarto's own: a checkpoint other than the default."""


class DeployedModelRef(Message):
    endpoint: Text = ""
    deployed_model_id: Text = ""
    checkpoint_id: Text = ""


class Model(Message):
    name: Text = ""
    version_id: Text = ""
    version_aliases: list[Text] = Field(default_factory=list)
    version_create_time: Timestamp | None = None
    version_update_time: Timestamp | None = None
    version_description: Text = ""
    display_name: Text = ""
    description: Text = ""
    labels: dict[str, Text] = Field(default_factory=dict)
    artifact_uri: Text = ""
    checkpoints: list[Checkpoint] = Field(default_factory=list)
    default_checkpoint_id: Text = ""
    deployed_models: list[DeployedModelRef] = Field(default_factory=list)
    model_source_info: Struct | None = None
    metadata: Struct | None = None
    encryption_spec: EncryptionSpec | None = None
    create_time: Timestamp | None = None
    update_time: Timestamp | None = None
    etag: Text = ""
    supported_export_formats: list[Struct] = Field(default_factory=list)
    supported_deployment_resources_types: list[DeploymentResourcesType] = Field(default_factory=list)


class DeployedModel(Message):
    id: Text = ""
    model: Text = ""
    model_version_id: Text = ""
    display_name: Text = ""
    checkpoint_id: Text = ""
    create_time: Timestamp | None = None


class Endpoint(Message):
    name: Text = ""
    display_name: Text = ""
    description: Text = ""
    labels: dict[str, Text] = Field(default_factory=dict)
    deployed_models: list[DeployedModel] = Field(default_factory=list)
    traffic_split: dict[str, int] = Field(default_factory=dict)
    encryption_spec: EncryptionSpec | None = None
    create_time: Timestamp | None = None
    update_time: Timestamp | None = None
    etag: Text = ""
    dedicated_endpoint_enabled: Boolean | None = None

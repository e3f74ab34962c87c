"""`CheckpointOrigin`, the `resource` of a checkpoint's row: facts that generation needs without its job or model."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from sarto.control.context import AnyRow


class CheckpointOrigin(BaseModel):
    """The facts of a checkpoint. Evaluation and certificate stay JSON, because those of old checkpoints may lack newer
    fields."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)

    weights: str
    """Id of the base weights, of the catalogue or custom."""
    base_model: str
    """The base model by the user's name for it."""
    rank: int
    evaluation: dict[str, Any] | None = None
    """The contract's `EvalMetrics` of this step."""
    certificate: dict[str, Any] | None = None
    """The contract's `ParityCertificate`."""
    kms_key: str = ""
    """The key under which the adapter is encrypted."""
    is_full: bool = False
    """Whether it is a whole model, and not an adapter."""

    @classmethod
    def of(cls, row: AnyRow) -> CheckpointOrigin:
        return cls.model_validate_json(row.resource)

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True)

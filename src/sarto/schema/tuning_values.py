"""Values that the specs and statistics of several tuning methods share."""

from __future__ import annotations

from pydantic import Field

from sarto.schema.wire import Double, Int64, Message, ProtoEnum


class AdapterSize(ProtoEnum):
    """LoRA rank by name. The wire numbers are not in size order: TWO was added last."""

    ADAPTER_SIZE_UNSPECIFIED = "ADAPTER_SIZE_UNSPECIFIED"
    ADAPTER_SIZE_ONE = "ADAPTER_SIZE_ONE"
    ADAPTER_SIZE_FOUR = "ADAPTER_SIZE_FOUR"
    ADAPTER_SIZE_EIGHT = "ADAPTER_SIZE_EIGHT"
    ADAPTER_SIZE_SIXTEEN = "ADAPTER_SIZE_SIXTEEN"
    ADAPTER_SIZE_THIRTY_TWO = "ADAPTER_SIZE_THIRTY_TWO"
    ADAPTER_SIZE_TWO = "ADAPTER_SIZE_TWO"

    @property
    def rank(self) -> int:
        return RANKS[self]

    @classmethod
    def of_rank(cls, rank: int) -> AdapterSize:
        return next(size for size, value in RANKS.items() if value == rank)


RANKS: dict[AdapterSize, int] = {
    AdapterSize.ADAPTER_SIZE_UNSPECIFIED: 0,
    AdapterSize.ADAPTER_SIZE_ONE: 1,
    AdapterSize.ADAPTER_SIZE_TWO: 2,
    AdapterSize.ADAPTER_SIZE_FOUR: 4,
    AdapterSize.ADAPTER_SIZE_EIGHT: 8,
    AdapterSize.ADAPTER_SIZE_SIXTEEN: 16,
    AdapterSize.ADAPTER_SIZE_THIRTY_TWO: 32,
}


class TuningMode(ProtoEnum):
    TUNING_MODE_UNSPECIFIED = "TUNING_MODE_UNSPECIFIED"
    TUNING_MODE_FULL = "TUNING_MODE_FULL"
    TUNING_MODE_PEFT_ADAPTER = "TUNING_MODE_PEFT_ADAPTER"


class PlainBucket(Message):
    count: Int64 | None = None
    left: Double = 0.0
    right: Double = 0.0


class PlainDistribution(Message):
    """The API's DatasetDistribution; that of supervised tuning is another message, with an integer sum."""

    sum: Double | None = None
    min: Double | None = None
    max: Double | None = None
    mean: Double | None = None
    median: Double | None = None
    p5: Double | None = None
    p95: Double | None = None
    buckets: list[PlainBucket] = Field(default_factory=list)

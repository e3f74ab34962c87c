"""Parts shared by several specs: base weights, datasets, parameters, judges, and the parity certificate."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sarto.contract.places import FileName

DataFormat = Literal["auto", "translation", "preference", "prompts", "reinforcement"]
"""The names in `READERS`, `conversations/examples.py`."""


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


CUSTOM = "custom-"
"""Prefix of the digests and ids of custom bases."""
FULL = "full-"
"""Prefix of the digests and ids of fully tuned models, which are bases of their own."""


class BaseWeights(Record):
    """A base: a folder with `config.json`, `model*.safetensors`, `tokenizer.json`, `chat_template.jinja`."""

    name: str
    """Its name in labels and messages, for example `SmolLM2-135M-Instruct`."""
    folder: FileName
    digest: str
    """Hex digest of the weights, for caches and certificates."""
    quantisation: Literal["int8", "nf4"] | None = None
    """The matrices of the layers are stored in 8 or 4 bits, and the base is defined by the quantised values."""
    hub: str = ""
    """Its public origin: the name on the model hub, or the gs:// folder of a custom base."""

    @property
    def public_name(self) -> str:
        """Its name in files that leave this server."""
        return self.hub or self.name

    def fully_tuned(self, folder: str, digest: str = "") -> BaseWeights:
        """The base that full tuning of this one has written to a folder."""
        return BaseWeights(name=self.name, folder=folder, digest=digest, hub=self.hub)

    @property
    def is_custom(self) -> bool:
        """Whether it is a custom base or a fully tuned model, whose folder is not trusted."""
        return self.digest.startswith((CUSTOM, FULL))


class Files(Record):
    """Files and folders that a program needs. The first of `write` is for temporary files."""

    read: list[str]
    write: list[str]
    """Read and written: what the next attempt and the service get from the program."""
    scratch: list[str] = Field(default_factory=list)
    """Read and written, and of use on one machine only: nobody copies them."""

    @property
    def writable(self) -> list[str]:
        return [*self.write, *self.scratch]


class DatasetRef(Record):
    """A dataset for a run: the user's name for messages, and a file with exactly those bytes."""

    uri: str
    path: FileName
    size_bytes: int
    digest: str = ""


class ReinforcementParameters(Record):
    """Parameters of a run that learns from rewards. None means that the run chooses the value."""

    reward: dict[str, Any]
    """A reward config in the API's form, by its field of the spec."""
    step_count: int | None = None
    samples_per_prompt: int | None = None
    max_output_tokens: int | None = None
    evaluate_interval: int | None = None
    checkpoint_interval: int | None = None
    kl_weight: float = 0.01
    """Weight of the distance to the initial model in nats a token."""


class TuningParameters(Record):
    """Parameters of a run. None means that the run chooses the value from the data, with a `parameters` event."""

    rank: int
    """0 if all weights are tuned."""
    alpha: float
    is_full: bool = False
    """Tune all weights instead of an adapter."""
    target_modules: list[str] = Field(default_factory=list)
    """Projections with an adapter, by their last name (`q_proj` …); empty means all linear projections."""
    epoch_count: int | None = None
    learning_rate: float | None = None
    learning_rate_reason: str = ""
    """The reason for its value, if the user did not set it."""
    learning_rate_multiplier: float = 1.0
    """Multiplies the learning rate, given or chosen."""
    batch_size: int | None = None
    beta: float | None = None
    """Weight of the distance to the initial model, in a method that learns from pairs; None in others."""
    beta_reason: str = ""
    """The reason for its value, if the user did not set it."""
    reinforcement: ReinforcementParameters | None = None
    """Of a method that learns from rewards; None in others."""
    warmup_fraction: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0


class Instructions(Record):
    """The highest instruction level for products, and the reason: the result of `sarto.system.processor`."""

    level: str = ""
    """Value of `ONEDNN_MAX_CPU_ISA`; empty leaves it unset."""
    words: str = "not tried"


class JudgeModel(Record):
    """A model that scores answers: a base, and the folder of an adapter for a tuned one."""

    base: BaseWeights
    adapter_folder: FileName = ""
    adapter_digest: str = ""


class Teaching(Record):
    """The teacher of a distillation, how it answers, and what its student learns."""

    teacher: str
    """The user's name for it."""
    model: JudgeModel | None = None
    """None if it is elsewhere: then the service calls it by its name."""
    generation: dict[str, Any] = Field(default_factory=dict)
    """A GenerationConfig in the API's form, for one answer."""
    candidates: int = 1
    """Answers to each prompt."""
    level: Literal["sequence", "token"] = "sequence"
    """Its answers only, or also its distribution over each token of them."""
    level_reason: str = ""
    loss_weight: float = 1.0
    """Weight of the cross-entropy beside the divergence, at token level."""

    @property
    def temperature(self) -> float:
        """0 is greedy."""
        return float(self.generation.get("temperature", 0.0))


class EvaluationPlan(Record):
    """The evaluation after every checkpoint. Without `config` it is only the standard report."""

    config: dict[str, Any] | None = None
    """An EvaluationConfig in the API's form."""
    judges: dict[str, JudgeModel] = Field(default_factory=dict)
    """Judges by their names in the config; without a name the judge is the job's base."""
    outside_judges: list[str] = Field(default_factory=list)
    """Judges that the service calls for the run, which has no network."""
    output_uri: str = ""
    """Later location of the files of the config's metrics."""
    max_seconds: float = 0.0
    """Time limit for the evaluation of a checkpoint; 0 has no limit."""


class ParityCertificate(Record):
    """Serving against training on held-out rows: prompts have equal tokens (else there is no certificate), and the
    logits of the replies are compared token by token."""

    rows: int
    reply_tokens: int
    precision: str
    max_logit_difference: float
    max_logit: float
    tolerance: float
    """The largest allowed difference."""
    mean_kl_nats: float
    """Mean divergence of serving's distribution from training's, per reply token."""
    kl_tolerance_nats: float
    training_perplexity: float | None = None
    """Perplexity of the replies in training and in serving; their difference is the cost of serving's precision."""
    serving_perplexity: float | None = None
    same_choice_share: float
    """Share of reply tokens for which both have the same most probable token."""
    passed: bool

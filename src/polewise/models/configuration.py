"""One configuration for models of all mixers."""

from __future__ import annotations

import warnings
from typing import Any, get_args

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from polewise.did_you_mean import did_you_mean
from polewise.mixers import all_options
from polewise.models.backbone import BackboneConfig
from polewise.models.pooling import Pooling
from polewise.options import require_at_least, require_choice, require_type


@strict
class PolewiseConfig(PreTrainedConfig):
    """A model of any mixer.

    `PolewiseConfig(mixer="focus", mixer_options={"chunk_length": 64})`: comparing two systems
    changes one word. The options of each mixer are the fields of its own configuration, for
    example `polewise.FocusConfig`.

    Raises:
        ValueError: an unknown key, mixer or option; the nearest name is suggested. (A file's
            unknown key is kept, with a warning.)
    """

    model_type = "polewise"
    keys_to_ignore_at_inference = ["cache"]  # noqa: RUF012

    mixer: str = "focus"
    """Name in `polewise.mixers.MIXERS`."""
    mixer_options: dict | None = None
    """Options of the mixer, but for `dim`. Those not given are added with their defaults."""
    hidden_size: int = 256
    """Channels."""
    num_hidden_layers: int = 4
    """Blocks."""
    intermediate_size: int | None = None
    """Width of the feed-forward; 0 leaves it out, and None does where the mixer contains one
    (Focus, Mamba-2): else it is twice `hidden_size`."""
    dropout: float = 0.0
    """Share of each half block that is dropped in training."""
    vocab_size: int = 256
    """Tokens; 256 for bytes."""
    num_input_features: int = 0
    """Numbers per step of `input_values`; 0 for models of tokens."""
    prediction_length: int = 0
    """Steps that a forecasting model predicts."""
    pooling: Pooling = "mean"
    """What a classification model reads: the mean of all real steps, or the last of them. A mean
    loses the order in which a causal layer saw things: where places matter, take the last."""
    max_position_embeddings: int = 1 << 20
    """Advice to evaluation tools; nothing in the model depends on it."""
    tie_word_embeddings: bool = True
    """Use the embedding as output layer."""
    use_cache: bool = True
    """Return what was read as `cache`, but in training."""
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        known = {*type(self).__dataclass_fields__, *_KEYS_OF_TRANSFORMERS}
        for key in kwargs:
            if key in known or key.startswith("_"):
                continue
            unknown = f"PolewiseConfig has no {key!r}.{did_you_mean(key, sorted(known))}"
            if self.transformers_version is None:
                raise ValueError(f"{unknown} A mixer's own options go into mixer_options.")
            # A file, in which tools leave notes of their own.
            warnings.warn(f"{unknown} It is kept as a note.", stacklevel=2)
        for name, hint in _TYPES.items():
            require_type(name, getattr(self, name), hint)
        backbone = self.backbone()
        self.mixer_options = all_options(backbone.mixer)
        self.intermediate_size = backbone.intermediate_size
        super().__post_init__(**kwargs)
        require_at_least("num_labels", self.num_labels or 0, 1)
        if self.problem_type is not None:
            require_choice("problem_type", self.problem_type, _PROBLEM_TYPES)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As the library's. `mixer_options` given beside a file change those that they name, and
        another `mixer` has its own defaults."""
        names = ("mixer", "mixer_options")
        given: dict[str, Any] = {name: kwargs.pop(name) for name in names if name in kwargs}
        if given:
            if given.get("mixer", config_dict.get("mixer")) != config_dict.get("mixer"):
                config_dict = {**config_dict, "mixer_options": None, "intermediate_size": None}
            options = {
                **(config_dict.get("mixer_options") or {}),
                **(given.get("mixer_options") or {}),
            }
            config_dict = {**config_dict, **given, "mixer_options": options}
        return super().from_dict(config_dict, **kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """What is written: beside what differs from the defaults, the mixer with all its options,
        so that a saved model stays what it is whatever the defaults become."""
        written = super().to_diff_dict()
        if type(self).__module__.split(".")[0] == "polewise":
            # Of the folder it was loaded from, whose code stays there.
            written.pop("auto_map", None)
        return written | {"mixer": self.mixer, "mixer_options": dict(self.mixer_options or {})}

    def backbone(self) -> BackboneConfig:
        """The same choice in plain torch, checked."""
        for name in ("hidden_size", "num_hidden_layers", "vocab_size"):
            require_at_least(name, getattr(self, name), 1)
        for name in ("num_input_features", "prediction_length"):
            require_at_least(name, getattr(self, name), 0)
        require_choice("pooling", self.pooling, get_args(Pooling))
        return BackboneConfig.named(
            self.mixer,
            self.hidden_size,
            self.mixer_options or {},
            num_layers=self.num_hidden_layers,
            intermediate_size=self.intermediate_size,
            dropout=self.dropout,
        )


_TYPES: dict[str, Any] = {
    "mixer_options": dict | None, "max_position_embeddings": int, "tie_word_embeddings": bool,
    "use_cache": bool, "pad_token_id": int | None, "bos_token_id": int | None,
    "eos_token_id": int | list[int] | None,
}  # fmt: skip
"""Of what nothing else checks."""

_PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

_KEYS_OF_TRANSFORMERS = (
    "architectures", "auto_map", "dtype", "id2label", "label2id", "model_type", "name_or_path",
    "num_labels", "problem_type", "quantization_config", "torch_dtype", "transformers_version",
    "attn_implementation", "finetuning_task", "task_specific_params", "output_attentions",
    "experts_implementation", "per_layer_config",
)  # fmt: skip

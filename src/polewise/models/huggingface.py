"""The Hugging Face family: one configuration and three models for all mixers.

The only file that imports transformers. Importing it registers the Auto classes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import (
    BaseModelOutput,
    CausalLMOutput,
    SequenceClassifierOutput,
)

from polewise import states
from polewise.mixers.options import nearest
from polewise.models.backbone import Backbone, BackboneConfig, BackboneState, mixer_options


@strict
class PolewiseConfig(PreTrainedConfig):
    """A model of any mixer.

    `PolewiseConfig(mixer="focus", mixer_options={"chunk_length": 64})`: comparing two systems
    changes one word. The options of each mixer are the fields of its own configuration, for
    example `polewise.FocusConfig`.

    Raises:
        ValueError: an unknown key, mixer or option; the nearest name is suggested.
    """

    model_type = "polewise"
    keys_to_ignore_at_inference = ("past_key_values",)

    mixer: str = "focus"
    """Name in `polewise.mixers.MIXERS`."""
    mixer_options: dict | None = None
    """Options of the mixer, but for `dim`."""
    hidden_size: int = 256
    """Channels."""
    num_hidden_layers: int = 4
    """Blocks."""
    intermediate_size: int = 512
    """Width of the feed-forward; 0 leaves it out."""
    dropout: float = 0.0
    """Share of each half block that is dropped in training."""
    vocab_size: int = 256
    """Tokens; 256 for bytes."""
    num_input_features: int = 0
    """Numbers per step of `input_values`; 0 for models of tokens."""
    max_position_embeddings: int = 1 << 20
    """Advice to evaluation tools; nothing in the model depends on it."""
    tie_word_embeddings: bool = True
    """Use the embedding as output layer."""
    use_cache: bool = False
    """Kept False: streaming goes through `step` and its state."""
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        known = {*type(self).__dataclass_fields__, *_KEYS_OF_TRANSFORMERS}
        for key in kwargs:
            if key not in known and not key.startswith("_"):
                raise ValueError(
                    f"PolewiseConfig has no {key!r}.{nearest(key, sorted(known))} "
                    "A mixer's own options go into mixer_options."
                )
        self.backbone()
        super().__post_init__(**kwargs)

    def backbone(self) -> BackboneConfig:
        """The same choice in plain torch, checked."""
        for name in ("hidden_size", "num_hidden_layers", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        for name in ("intermediate_size", "num_input_features"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative; got {getattr(self, name)}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1); got {self.dropout}.")
        return BackboneConfig(
            mixer=mixer_options(self.mixer, self.hidden_size, self.mixer_options or {}),
            num_layers=self.num_hidden_layers,
            hidden_dim=self.intermediate_size,
            dropout=self.dropout,
        )


_KEYS_OF_TRANSFORMERS = (
    "architectures", "auto_map", "dtype", "id2label", "label2id", "model_type", "name_or_path",
    "num_labels", "problem_type", "quantization_config", "torch_dtype", "transformers_version",
    "attn_implementation", "finetuning_task", "task_specific_params",
)  # fmt: skip


class PolewisePreTrainedModel(PreTrainedModel):
    """Loading, saving and initialising, as transformers expects them."""

    config: PolewiseConfig
    config_class = PolewiseConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Every module knows its own start; what a checkpoint brought is put back."""
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
        elif callable(reset := getattr(module, "reset_parameters", None)):
            loaded = [
                (parameter, parameter.detach().clone())
                for parameter in module.parameters()
                if getattr(parameter, "_is_hf_initialized", False)
            ]
            reset()
            for parameter, value in loaded:
                parameter.copy_(value)

    def _set_gradient_checkpointing(self, enable: bool = True, *_: Any, **__: Any) -> None:
        for module in self.modules():
            if isinstance(module, Backbone):
                module.checkpoint_activations = enable


class PolewiseModel(PolewisePreTrainedModel):
    """Tokens or numbers in, hidden states out."""

    def __init__(self, config: PolewiseConfig) -> None:
        super().__init__(config)
        self.embed_values: nn.Module
        self.embed_tokens: nn.Module
        if config.num_input_features:
            self.embed_values = nn.Linear(config.num_input_features, config.hidden_size)
        else:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.backbone = Backbone(config.backbone())
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **_: Any,
    ) -> BaseModelOutput:
        """Run the whole sequence.

        Args:
            input_ids: (batch, length) tokens.
            attention_mask: (batch, length), 0 where a token does not exist: it takes no time,
                and bins and chunks do not count it. Left, right, or in between.
            input_values: (batch, length, features), for models of numbers.
            inputs_embeds: (batch, length, hidden_size), in place of either.
        """
        x = self.embed(input_ids, input_values, inputs_embeds)
        if attention_mask is None:
            return BaseModelOutput(last_hidden_state=self.backbone(x)[0])
        if attention_mask.shape != x.shape[:2]:
            raise ValueError(
                f"attention_mask must have shape (batch, length) = {tuple(x.shape[:2])}; "
                f"got {tuple(attention_mask.shape)}."
            )
        real = attention_mask.bool()
        # Real tokens to the front, in order; the mixers know only right padding.
        order = (~real).to(torch.int8).argsort(dim=1, stable=True)
        back = order.argsort(dim=1)
        y, _state = self.backbone(_take(x, order), None, real.sum(1))
        return BaseModelOutput(last_hidden_state=_take(y, back))

    def embed(
        self,
        input_ids: Tensor | None,
        input_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Exactly one kind of input to (batch, length, hidden_size)."""
        given = [part for part in (input_ids, input_values, inputs_embeds) if part is not None]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of input_ids, input_values and inputs_embeds; "
                f"got {len(given)} of them."
            )
        if inputs_embeds is not None:
            return inputs_embeds
        if self.config.num_input_features:
            if input_values is None:
                raise ValueError("this model reads input_values (num_input_features > 0).")
            return self.embed_values(input_values)
        if input_ids is None:
            raise ValueError("this model reads input_ids (num_input_features = 0).")
        # Unit variance in, while the tied output layer stays small.
        return self.embed_tokens(input_ids) * math.sqrt(self.config.hidden_size)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_values if self.config.num_input_features else self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        if self.config.num_input_features:
            self.embed_values = value
        else:
            self.embed_tokens = value

    def state_num_bytes(self, batch: int = 1, length: int = 1) -> int:
        """Bytes of the state after `length` steps of `batch` sequences."""
        x = torch.zeros(
            batch, length, self.config.hidden_size, dtype=self.dtype, device=self.device
        )
        with torch.no_grad():
            return states.num_bytes(self.backbone(x)[1])


def _take(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[-1]))


class PolewiseForCausalLM(PolewisePreTrainedModel, GenerationMixin):
    """A language model. `labels` as everywhere in transformers: the input itself, -100 ignored."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: PolewiseConfig) -> None:
        super().__init__(config)
        if config.num_input_features:
            raise ValueError(
                "num_input_features must be 0 for a language model; "
                f"got {config.num_input_features}."
            )
        self.model = PolewiseModel(config)
        if not self.model.backbone.causal:
            raise ValueError("a language model needs a causal mixer; got causal=False.")
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutput:
        hidden = self.model(
            input_ids, attention_mask, inputs_embeds=inputs_embeds
        ).last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *_: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """The whole sequence at every step: right, and slower than `polewise.generate`, which
        streams with `step`."""
        if kwargs.get("inputs_embeds") is not None:
            raise ValueError("generate continues input_ids; inputs_embeds are not supported.")
        return {"input_ids": input_ids, "attention_mask": kwargs.get("attention_mask")}

    def step(
        self, input_ids: Tensor, state: BackboneState | None = None
    ) -> tuple[Tensor, BackboneState | None]:
        """Logits of a segment, (batch, length, vocab), and the state for the next one."""
        hidden, state = self.model.backbone(self.model.embed(input_ids), state)
        return self.lm_head(hidden), state

    def state_num_bytes(self, batch: int = 1, length: int = 1) -> int:
        """Bytes of the state after `length` steps of `batch` sequences."""
        return self.model.state_num_bytes(batch, length)


class PolewiseForSequenceClassification(PolewisePreTrainedModel):
    """One label a sequence: the mean of the real steps, then a linear layer."""

    def __init__(self, config: PolewiseConfig) -> None:
        super().__init__(config)
        self.model = PolewiseModel(config)
        self.score = nn.Linear(config.hidden_size, int(config.num_labels or 1))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        hidden = self.model(
            input_ids, attention_mask, input_values, inputs_embeds
        ).last_hidden_state
        if attention_mask is None:
            pooled = hidden.mean(1)
        else:
            real = attention_mask.bool()[..., None]
            pooled = torch.where(real, hidden, 0).sum(1) / real.sum(1).clamp(min=1)
        logits = self.score(pooled)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                labels=labels, pooled_logits=logits, config=self.config, **kwargs
            )
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def state_num_bytes(self, batch: int = 1, length: int = 1) -> int:
        """Bytes of the state after `length` steps of `batch` sequences."""
        return self.model.state_num_bytes(batch, length)


AutoConfig.register("polewise", PolewiseConfig, exist_ok=True)
AutoModel.register(PolewiseConfig, PolewiseModel, exist_ok=True)
AutoModelForCausalLM.register(PolewiseConfig, PolewiseForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(
    PolewiseConfig, PolewiseForSequenceClassification, exist_ok=True
)

"""The model that writes a sequence on."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.generation import GenerateBeamDecoderOnlyOutput
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import can_return_tuple

from polewise.models.arguments import require_prompt, require_real_end
from polewise.models.backbone import BackboneState
from polewise.models.cache import PolewiseCache
from polewise.models.configuration import PolewiseConfig
from polewise.models.modeling import (
    PolewiseModel,
    PolewisePreTrainedModel,
    former_name_of_the_cache,
)
from polewise.models.rows import first_of_documents, real_tokens_first

_CACHES = ("cache", "past_key_values")

_COMPILED: dict[str, Any] = {"fullgraph": True, "dynamic": False}
"""How a single step is compiled unless told otherwise."""


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
            raise ValueError("mixer_options must have causal=True for a language model; got False.")
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    @former_name_of_the_cache
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: PolewiseCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        seq_idx: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of a segment, (batch, length, vocab). Arguments as in `PolewiseModel.forward`.

        `logits_to_keep`: that many of the last steps, or the steps of a tensor; 0 keeps all.
        With `seq_idx`, no document is asked to predict the next one's first token; nothing under a
        mask is a target, nor is what comes just after it. Without any target the loss is NaN, as
        everywhere in transformers. With `num_items_in_batch` (a Trainer's count of labels, over
        all batches of a step) the sum is divided by that number: labels hidden so, and not by
        -100, are counted and make the loss smaller, in every batch alike. `shift_labels` are
        targets that are already shifted, and are used unchanged.
        """
        num_items = kwargs.pop("num_items_in_batch", None)
        shifted = kwargs.pop("shift_labels", None)
        output = self.model(
            input_ids, attention_mask, cache=cache, inputs_embeds=inputs_embeds,
            use_cache=use_cache, seq_idx=seq_idx, return_dict=True, **kwargs,
        )  # fmt: skip
        logits = self.lm_head(slice_logits_to_keep(output.last_hidden_state, logits_to_keep))
        for name, targets in (("labels", labels), ("shift_labels", shifted)):
            if targets is not None and targets.shape != logits.shape[:2]:
                raise ValueError(
                    f"{name} must have shape {tuple(logits.shape[:2])}, a token for each step of "
                    f"the logits; got {tuple(targets.shape)}."
                )
        loss = None
        if shifted is not None:  # targets as they stand, of a caller who knows all of this
            loss = self.loss_function(
                logits=logits, labels=None, vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items, shift_labels=shifted,
            )  # fmt: skip
        elif labels is not None:
            hidden = _no_targets(output.last_hidden_state.shape[1], attention_mask, seq_idx)
            if hidden is not None:
                hidden = slice_logits_to_keep(hidden[..., None], logits_to_keep)[..., 0]
                labels = labels.masked_fill(hidden, -100)
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items,
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            cache=output.cache,
            hidden_states=output.hidden_states,
        )

    def step(
        self, input_ids: Tensor, state: BackboneState | None = None
    ) -> tuple[Tensor, BackboneState | None]:
        """Logits of a segment, (batch, length, vocab), and the state for the next one.

        Raises:
            ValueError: the state of another model or batch, or tokens out of range.
        """
        rows = real_tokens_first(self.model.embed(input_ids), None)
        hidden, state = self.model._read(rows, state, name="state")
        return self.lm_head(hidden), state

    def initial_state(self, batch_size: int = 1) -> BackboneState:
        """The state before the first step."""
        return self.model.initial_state(batch_size)

    def compile_step(self, **options: Any) -> None:
        """Compile the reading of single tokens: decoding is several times as fast on a CPU.

        Every way to generate uses it from here on. The next single tokens take tens of seconds,
        once for each batch size, and on a CPU need a C++ compiler. Longer segments stay as they
        are, and so do batch sizes beyond the eight or so that torch compiles in a process
        (`torch._dynamo.config.recompile_limit`).

        Args:
            options: of `torch.compile`, in place of `fullgraph=True, dynamic=False`.

        Raises:
            ValueError: the state grows with every token: no two steps are alike.
        """
        if self.state_num_bytes(1, 1) != self.state_num_bytes(1, 2):
            raise ValueError(
                f"compile_step needs a state of constant size; that of mixer={self.config.mixer!r} "
                "grows with every token, and each would be compiled anew."
            )
        compiled = torch.compile(self.model.backbone, **(_COMPILED | options))
        # Beside the registered modules: its weights are the backbone's, and saved once.
        object.__setattr__(self.model, "_read_token", compiled)
        self.model._not_compiled.clear()

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Continue prompts: transformers' own `generate`, reading each token once.

        Greedy, sampling, beams, streamers, stopping criteria, left padding, `inputs_embeds`, and
        going on from a returned cache. A state cannot be rolled back, so assisted decoding is
        refused. Beams return no cache: theirs is that of the beams under way, in another order
        than the sequences, some of which ended long before.

        Raises:
            TypeError: a prompt that is no tensor, or a cache of another kind.
            ValueError: an empty prompt or batch, or what such a model cannot do.
        """
        require_prompt(inputs, kwargs)
        written = super().generate(inputs, *args, **kwargs)
        if isinstance(written, GenerateBeamDecoderOnlyOutput):
            kept = {name: value for name, value in written.items() if name not in _CACHES}
            return GenerateBeamDecoderOnlyOutput(**kept)
        return written

    def generate_batch(self, *_: Any, **__: Any) -> Any:
        """Refused: continuous batching pages keys and values, and a recurrent state has none.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "continuous batching keeps pages of keys and values; this model keeps a state of "
            "constant size instead. Use generate with a padded batch."
        )

    init_continuous_batching = generate_batch

    # transformers looks up its arguments.
    @functools.wraps(GenerationMixin.prepare_inputs_for_generation, assigned=())
    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As transformers does it. After the prompt every token is real and needs no mask, which
        would have to be looked at, or on a GPU be obeyed unseen."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        given = inputs.get("input_ids")
        prompt = kwargs.get("is_first_iteration")
        if given is not None and given.shape[1] == 1 and not prompt:
            inputs["attention_mask"] = None
        return inputs

    def _prepare_attention_mask_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        mask = super()._prepare_attention_mask_for_generation(*args, **kwargs)
        require_real_end(mask)
        return mask

    def _prepare_cache_for_generation(  # type: ignore[override]
        self,
        generation_config: Any,
        model_kwargs: dict,
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        form = generation_config.cache_implementation
        if form not in (None, "dynamic", "static"):
            raise ValueError(
                f"cache_implementation must be left out: the state has one form, of constant "
                f"size; got {form!r}."
            )
        if form is not None and model_kwargs.get("cache") is not None:
            raise ValueError("cache_implementation must be left out beside a cache.")
        if not generation_config.use_cache and model_kwargs.get("cache") is not None:
            raise ValueError("use_cache must be True where a cache is passed; got False.")
        if generation_config.prefill_chunk_size and model_kwargs.get("inputs_embeds") is not None:
            raise ValueError(
                "prefill_chunk_size must be None beside inputs_embeds: only tokens are read in "
                "pieces."
            )
        if isinstance(model_kwargs.get("cache"), PolewiseCache):
            # As transformers marks it: whoever has it may go on from it, so no token too many is
            # read before the end is noticed.
            model_kwargs["cache"]._is_user_defined = True
            beams = max(generation_config.num_beams, generation_config.num_return_sequences)
            rows, found = batch_size * beams, model_kwargs["cache"].batch_size
            if found not in (-1, rows):
                repeat = f" Repeat its rows first, cache.batch_repeat_interleave({beams})."
                raise ValueError(
                    f"cache must have a row for each of {rows} sequences; got {found}."
                    f"{repeat if found == batch_size else ''}"
                )
        elif model_kwargs.get("cache") is None and generation_config.use_cache:
            model_kwargs["cache"] = PolewiseCache()


def _no_targets(length: int, mask: Tensor | None, seq_idx: Tensor | None) -> Tensor | None:
    """Which steps of a segment nothing before them may be asked for, (batch, length): the first of
    a document, and, with a mask, what it hides and what comes just after. None: all are targets."""
    if seq_idx is not None:
        return first_of_documents(seq_idx) | (seq_idx < 0)
    if mask is None:
        return None
    real = mask[:, mask.shape[1] - length :].bool()
    return ~(real & torch.cat([real[:, :1], real[:, :-1]], 1))

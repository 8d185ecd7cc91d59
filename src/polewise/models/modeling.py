"""The model that reads a sequence, and what all models share, as Hugging Face expects them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import can_return_tuple

from polewise.models.arguments import (
    only_one,
    real_tokens,
    refuse_unknown,
    require_cache,
    require_mask,
    require_rising,
)
from polewise.models.backbone import Backbone, BackboneState
from polewise.models.cache import PolewiseCache
from polewise.models.configuration import PolewiseConfig
from polewise.models.embedding import ScaledEmbedding
from polewise.models.rows import Rows, real_tokens_first, separate_documents
from polewise.ops.precision import dtype_name
from polewise.states import num_bytes, require_state_like

# Outputs have the cache under its former name too, and loops written for it hand it back so.
former_name_of_the_cache = deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")


class PolewisePreTrainedModel(PreTrainedModel):
    """Loading, saving and initialising, as transformers expects them."""

    config: PolewiseConfig
    config_class = PolewiseConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012
    _skip_keys_device_placement = ["cache", "past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _is_stateful = True
    # What decides a pole stays float32 in a half-precision model: bfloat16 has no number
    # between 1 - 2^-8 and 1.
    _keep_in_fp32_modules_strict = [  # noqa: RUF012
        "base", "logit", "step", "damping", "log_step", "log_rate", "frequency", "log_frequency",
    ]  # fmt: skip

    def __init__(self, config: PolewiseConfig) -> None:
        super().__init__(config)
        if config.num_input_features:  # tools look for it by this name
            self.main_input_name = "input_values"

    def post_init(self) -> None:
        """What decides a pole is float32 in a model that is built, as in one that is loaded."""
        exact = set(self._keep_in_fp32_modules_strict)
        for name, parameter in self.named_parameters():
            if parameter.dtype.itemsize < 4 and not exact.isdisjoint(name.split(".")):
                parameter.data = parameter.data.float()
        super().post_init()

    def _get_dtype_plan(self, dtype: torch.dtype) -> dict[str, torch.dtype]:
        """By whole parts of a name: the library looks for these anywhere in it, and would find
        `step` in `to_step`."""
        plan = super()._get_dtype_plan(dtype)
        return {rf"(?:^|\.){name}(?:\.|$)": kept for name, kept in plan.items()}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Every module knows its own start; what a checkpoint brought is put back."""
        given = list(module.parameters())
        if given and all(map(_is_loaded, given)):
            return
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
        elif callable(reset := getattr(module, "reset_parameters", None)):
            loaded = [
                (parameter, parameter.detach().clone())
                for parameter in module.parameters()
                if _is_loaded(parameter)
            ]
            reset()
            for parameter, value in loaded:
                parameter.copy_(value)

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        """As for models of transformers' own: in others it skips modules without a parameter of
        their own, whose `reset_parameters` would not run."""
        super()._initialize_weights(module, is_custom_code=False)

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Any = None,
        every_n_layers: int = 1,
    ) -> None:
        for module in self.modules():
            if isinstance(module, Backbone):
                function = gradient_checkpointing_func or module.checkpoint
                keywords = getattr(function, "keywords", {})
                if enable and keywords.get("use_reentrant") and module.shared is not None:
                    raise ValueError(
                        "use_reentrant must be False for a hypernetwork that layers share: each "
                        "would go back through it by itself."
                    )
                module.gradient_checkpointing = enable
                module.checkpoint_every = every_n_layers
                module.checkpoint = function

    def state_num_bytes(self, batch: int = 1, length: int = 1) -> int:
        """Bytes of the state after `length` steps of `batch` sequences; 0 if it cannot stream."""
        model: Any = self.base_model
        x = torch.zeros(
            batch, length, self.config.hidden_size, dtype=self.dtype, device=self.device
        )
        with torch.no_grad():
            return num_bytes(model.backbone(x)[1])


class PolewiseModel(PolewisePreTrainedModel):
    """Tokens or numbers in, hidden states out."""

    def __init__(self, config: PolewiseConfig) -> None:
        super().__init__(config)
        self.embed_values: nn.Module
        self.embed_tokens: nn.Module
        if config.num_input_features:
            self.embed_values = nn.Linear(config.num_input_features, config.hidden_size)
        else:
            self.embed_tokens = ScaledEmbedding(config.vocab_size, config.hidden_size)
        self.backbone = Backbone(config.backbone())
        self._read_token: Any = None
        self._not_compiled: set[Any] = set()
        self.post_init()

    @can_return_tuple
    @former_name_of_the_cache
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: PolewiseCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        input_values: Tensor | None = None,
        seq_idx: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Read a segment.

        Args:
            input_ids: (batch, length) tokens.
            attention_mask: (batch, length), 0 where a token does not exist: it takes no time,
                bins and chunks do not count it, and what stands there is not looked at. Left,
                right, or in between. With a cache, columns that were read before may precede.
            cache: what was read before; brought up to date.
            inputs_embeds: (batch, length, hidden_size), in place of tokens.
            use_cache: return a cache to go on from. None: as configured, not in training.
            input_values: (batch, length, features), for models of numbers.
            seq_idx: (batch, length) integers, for rows that hold several documents one after
                another: a document ends where the number changes; below 0 is padding. Each
                document gets what it would get alone.
            output_hidden_states: return what each block reads, and the last hidden state.

        Raises:
            ValueError: shapes that do not fit, two ways to say one thing, a cache of another
                model, or tokens out of range; the message names the argument.
            TypeError: an unknown argument.
        """
        positions = kwargs.pop("position_ids", None)
        refuse_unknown(kwargs)
        require_cache(cache)
        if seq_idx is not None and (attention_mask is not None or cache is not None):
            raise ValueError(
                "seq_idx must stand alone: it says where padding is (numbers below 0), and packed "
                "documents start from nothing. Leave out attention_mask and cache."
            )
        history = PolewiseCache() if cache is None else cache
        rows = self._rows(
            (input_ids, input_values, inputs_embeds), attention_mask, seq_idx, positions,
            history.length,
        )  # fmt: skip
        if use_cache is None:
            # A replica of `nn.DataParallel` can hand back nothing but tensors.
            alone = not getattr(self, "_is_replica", False)
            use_cache = self.config.use_cache and not self.training and alone
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        read: list[Tensor] | None = [] if output_hidden_states else None
        y, state = self._read(rows, history.state, read)
        if cache is not None and state is None:
            raise ValueError(
                f"cache must be None and use_cache False: mixer={self.config.mixer!r} "
                "with these options cannot stream."
            )
        keeps = cache is not None or (use_cache and seq_idx is None and state is not None)
        if keeps:
            history.state, history.length = state, history.length + y.shape[1]
        return BaseModelOutputWithPast(
            last_hidden_state=y,
            cache=history if keeps else None,
            hidden_states=None if read is None else (*map(rows.restore, read), y),
        )

    def initial_state(self, batch_size: int = 1) -> BackboneState:
        """The state before the first step.

        Raises:
            ValueError: this configuration cannot stream.
        """
        x = torch.zeros(
            batch_size, 0, self.config.hidden_size, dtype=self.dtype, device=self.device
        )
        with torch.no_grad():
            _, state = self.backbone(x)
        if state is None:
            raise ValueError(f"mixer={self.config.mixer!r} with these options has no state.")
        return state

    def _rows(
        self,
        given: tuple[Tensor | None, Tensor | None, Tensor | None],
        mask: Tensor | None,
        documents: Tensor | None,
        positions: Tensor | None,
        seen: int,
    ) -> Rows:
        """What was given, ids, values or vectors, as the rows that mixers know.

        What stands under a mask is not a token or a number, and need not be one.
        """
        only = self._require_input(*given)
        if documents is not None:
            require_mask("seq_idx", documents, only, 0)
            real: Tensor | None = documents >= 0
        else:
            real = real_tokens(mask, only, seen)
            if positions is not None:
                require_rising(positions, real)
        input_ids, input_values, inputs_embeds = given
        if real is not None and input_ids is not None:
            input_ids = torch.where(real, input_ids, 0)
        if real is not None and input_values is not None:
            input_values = torch.where(real[..., None], input_values, 0)
        x = self._embed(input_ids, input_values, inputs_embeds)
        return real_tokens_first(x, real) if documents is None else separate_documents(x, documents)

    def _read(
        self,
        rows: Rows,
        state: BackboneState | None,
        read: list[Tensor] | None = None,
        name: str = "cache",
    ) -> tuple[Tensor, BackboneState | None]:
        """Hidden states and the state after them; `name` is what the caller calls the state."""
        backbone, kind = self.backbone, None
        one_token = rows.x.shape[1] == 1 and rows.lengths is None and read is None
        if self._read_token is not None and one_token:
            kind = len(rows.x), rows.x.dtype, torch.is_grad_enabled()
            if kind not in self._not_compiled:
                backbone = self._read_token
        try:
            try:
                y, after = backbone(rows.x, state, rows.lengths, read=read)
            except FailOnRecompileLimitHit:  # torch keeps no more; each further try would cost
                self._not_compiled.add(kind)
                y, after = self.backbone(rows.x, state, rows.lengths, read=read)
        except (ValueError, TypeError, RuntimeError, IndexError, AttributeError):
            if state is not None:  # the likely reason, in the caller's words
                require_state_like(name, state, self.initial_state(len(rows.x)))
            raise
        return rows.restore(y), after

    def embed(
        self,
        input_ids: Tensor | None,
        input_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Exactly one kind of input to (batch, length, hidden_size)."""
        self._require_input(input_ids, input_values, inputs_embeds)
        return self._embed(input_ids, input_values, inputs_embeds)

    def _embed(
        self, input_ids: Tensor | None, input_values: Tensor | None, inputs_embeds: Tensor | None
    ) -> Tensor:
        if inputs_embeds is not None:
            return inputs_embeds
        if self.config.num_input_features:
            if input_values is None:
                raise ValueError("input_values must be given: this model reads numbers, no tokens.")
            weight = getattr(self.embed_values, "weight", None)
            if isinstance(weight, Tensor) and weight.is_floating_point():
                input_values = input_values.to(weight.dtype)
            return self.embed_values(input_values)
        if input_ids is None:
            raise ValueError("input_ids must be given: this model reads tokens, no numbers.")
        if not input_ids.numel():  # a tokenizer makes floats of an empty text
            input_ids = input_ids.long()
        if input_ids.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"input_ids must be int32 or int64; got {dtype_name(input_ids.dtype)}.")
        try:
            return self.embed_tokens(input_ids)
        except IndexError:
            raise ValueError(
                f"input_ids must lie in [0, {self.config.vocab_size}); got values from "
                f"{int(input_ids.min())} to {int(input_ids.max())}."
            ) from None

    def _require_input(
        self, input_ids: Tensor | None, input_values: Tensor | None, inputs_embeds: Tensor | None
    ) -> Tensor:
        """Return the one input that was given, checked to have its shape."""
        config, only = self.config, only_one((input_ids, input_values, inputs_embeds))
        for name, given, last in (
            ("input_ids", input_ids, ()),
            ("input_values", input_values, (config.num_input_features,)),
            ("inputs_embeds", inputs_embeds, (config.hidden_size,)),
        ):
            if given is not None and not isinstance(given, Tensor):
                raise TypeError(f"{name} must be a tensor; got {type(given).__name__}.")
            if name == "input_values" and not config.num_input_features:
                continue  # a model of tokens: another message
            if given is not None and (given.ndim != 2 + len(last) or given.shape[2:] != last):
                wanted = ", ".join(map(str, ("batch", "length", *last)))
                raise ValueError(f"{name} must have shape ({wanted}); got {tuple(given.shape)}.")
        return only

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_values if self.config.num_input_features else self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Take another embedding as it is: its vectors are to have unit variance."""
        if self.config.num_input_features:
            self.embed_values = value
        else:
            self.embed_tokens = value


def _is_loaded(parameter: Tensor) -> bool:
    """Whether a checkpoint brought it; a quantised one holds integers, and always came."""
    return getattr(parameter, "_is_hf_initialized", False) or not parameter.is_floating_point()

"""The models that read a whole sequence before they answer: with a label, or with a forecast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils.generic import can_return_tuple

from polewise.models.configuration import PolewiseConfig
from polewise.models.modeling import PolewiseModel, PolewisePreTrainedModel
from polewise.models.pooling import pool
from polewise.ops.precision import accumulator_dtype


class PolewiseForSequenceClassification(PolewisePreTrainedModel):
    """One label a sequence: the mean of the real steps or the last of them (`pooling`), then a
    linear layer."""

    def __init__(self, config: PolewiseConfig) -> None:
        super().__init__(config)
        self.model = PolewiseModel(config)
        self.score = nn.Linear(config.hidden_size, int(config.num_labels or 1))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Scores of the labels, as `logits`, (batch, num_labels).

        Args:
            input_ids: (batch, length) tokens.
            attention_mask: (batch, length), 0 where a step does not exist.
            input_values: (batch, length, features), for models of numbers.
            inputs_embeds: (batch, length, hidden_size), in place of either.
            labels: (batch,) classes; or numbers shaped like the scores, targets of a regression
                (`num_labels=1`) or 0 and 1 for each label. `config.problem_type` decides the loss.
            kwargs: as in `PolewiseModel.forward`.
        """
        _require_whole_rows(kwargs, "label")
        num_items = kwargs.pop("num_items_in_batch", None)
        output = self.model(
            input_ids, attention_mask, inputs_embeds=inputs_embeds, input_values=input_values,
            **kwargs | {"use_cache": False, "return_dict": True},
        )  # fmt: skip
        logits = self.score(pool(output.last_hidden_state, attention_mask, self.config.pooling))
        loss = None
        if labels is not None:
            scores, kind = logits, self.config.problem_type
            integers = isinstance(labels, Tensor) and labels.dtype in (torch.int32, torch.int64)
            names_classes = kind == "single_label_classification" or (
                kind is None and logits.shape[-1] > 1 and integers
            )
            _require_labels(labels, logits, classes=names_classes)
            if names_classes:
                labels = labels.long()
            else:  # numbers to be met, or one true or false for every score
                scores, labels = _alike(logits, labels)
            loss = self.loss_function(
                labels=labels,
                pooled_logits=scores,
                config=self.config,
                num_items_in_batch=num_items,
            )
            if num_items is not None and self.config.problem_type != "single_label_classification":
                # A mean, of which a Trainer that counts expects a share.
                loss = loss * labels.numel() / num_items
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=output.hidden_states
        )


class PolewiseForForecasting(PolewisePreTrainedModel):
    """What comes next in a series of numbers: a linear layer on the last real step.

    A forecast is `prediction_length` steps of the `num_input_features` numbers that are read.
    """

    accepts_loss_kwargs = False
    """The loss is a mean: a Trainer that accumulates gradients must divide it itself."""

    def __init__(self, config: PolewiseConfig) -> None:
        super().__init__(config)
        for name in ("num_input_features", "prediction_length"):
            if not getattr(config, name):
                raise ValueError(f"{name} must be at least 1 for a forecasting model; got 0.")
        self.model = PolewiseModel(config)
        self.forecast = nn.Linear(
            config.hidden_size, config.prediction_length * config.num_input_features
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Forecast, as `logits`, (batch, prediction_length, num_input_features).

        Args:
            input_values: (batch, length, num_input_features).
            attention_mask: (batch, length), 0 where a step does not exist.
            inputs_embeds: (batch, length, hidden_size), in place of values.
            labels: what came, like the forecast; the loss is the mean squared error.
            kwargs: as in `PolewiseModel.forward`.
        """
        _require_whole_rows(kwargs, "forecast")
        output = self.model(
            attention_mask=attention_mask, inputs_embeds=inputs_embeds, input_values=input_values,
            **kwargs | {"use_cache": False, "return_dict": True},
        )  # fmt: skip
        last = pool(output.last_hidden_state, attention_mask, "last")
        shape = (self.config.prediction_length, self.config.num_input_features)
        forecast = self.forecast(last).unflatten(-1, shape)
        if labels is not None and labels.shape != forecast.shape:
            raise ValueError(
                f"labels must have shape (batch, {shape[0]}, {shape[1]}) like the forecast, "
                f"{tuple(forecast.shape)}; got {tuple(labels.shape)}."
            )
        loss = None if labels is None else nn.functional.mse_loss(*_alike(forecast, labels))
        return SequenceClassifierOutput(
            loss=loss, logits=forecast, hidden_states=output.hidden_states
        )


def _require_labels(labels: Tensor, scores: Tensor, *, classes: bool) -> None:
    """Check that there is a class for every row, or a number for every score."""
    rows, count = scores.shape
    shapes = [(rows,), (rows, 1)] if classes or count == 1 else [(rows, count)]
    got = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
    if got not in shapes:
        each = "an integer for each row" if classes else "a number for each score"
        wanted = " or ".join(map(str, shapes))
        raise ValueError(f"labels must have shape {wanted}, {each}; got {got}.")


def _alike(answer: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the loss's precision, on the answer's device: bfloat16 would round labels."""
    dtype = accumulator_dtype(answer)
    return answer.to(dtype), labels.to(answer.device, dtype)


def _require_whole_rows(arguments: dict[str, Any], answer: str) -> None:
    """Check that no part of a row, and nothing read before it, is to have an answer of its own."""
    if arguments.get("seq_idx") is not None:
        raise ValueError(f"seq_idx must be None: a row has one {answer}, so it is one document.")
    for name in ("cache", "past_key_values"):
        if arguments.pop(name, None) is not None:
            raise ValueError(f"{name} must be None: the answer is to all that is given at once.")

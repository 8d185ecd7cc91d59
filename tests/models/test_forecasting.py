"""Facts about models that say what comes next of a series."""

from __future__ import annotations

import pytest
import torch
from tests.models.small_models import FOCUS

from polewise import PolewiseConfig, PolewiseForForecasting

transformers = pytest.importorskip("transformers")


def test_a_forecast_is_made_at_the_last_real_step(tmp_path):
    torch.manual_seed(0)
    config = PolewiseConfig(
        num_input_features=2, prediction_length=3, hidden_size=8, num_hidden_layers=1,
        mixer_options=FOCUS,
    )  # fmt: skip
    model = PolewiseForForecasting(config).eval()
    x, mask = torch.randn(2, 20, 2), torch.ones(2, 20, dtype=torch.long)
    mask[1, 12:] = 0
    output = model(input_values=x, attention_mask=mask, labels=torch.ones(2, 3, 2))
    assert output.logits.shape == (2, 3, 2)
    torch.testing.assert_close(output.loss, (output.logits - 1).square().mean())
    with pytest.raises(ValueError, match=r"labels must have shape \(batch, 3, 2\) like the for"):
        model(input_values=x, attention_mask=mask, labels=torch.ones(2, 3))
    wide = torch.ones(2, 3, 2, dtype=torch.float64)  # labels as a table has them
    model(input_values=x, attention_mask=mask, labels=wide).loss.backward()
    far = torch.full((2, 3, 2), 1e5)
    with torch.autocast("cpu", torch.float16):  # which ends at 65504
        loss = model(input_values=x, attention_mask=mask, labels=far).loss
    torch.testing.assert_close(loss, torch.tensor(1e10), rtol=0.01, atol=0)
    alone = model(input_values=x[1:, :12]).logits
    torch.testing.assert_close(output.logits[1:], alone, rtol=1e-4, atol=1e-5)
    hidden = model.model(input_values=x[1:, :12]).last_hidden_state[:, -1]
    torch.testing.assert_close(alone, model.forecast(hidden).view(1, 3, 2))

    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForTimeSeriesPrediction.from_pretrained(tmp_path)
    torch.testing.assert_close(again(input_values=x[1:, :12]).logits, alone)


@pytest.mark.parametrize("name", ["num_input_features", "prediction_length"])
def test_a_forecasting_model_needs_to_know_what_and_how_far(name):
    options = {"num_input_features": 2, "prediction_length": 3, "hidden_size": 8, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1 for a forecasting model"):
        PolewiseForForecasting(PolewiseConfig(**options))

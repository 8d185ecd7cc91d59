"""Facts about several documents in one row: each is read as if it were alone."""

from __future__ import annotations

import pytest
import torch
from tests.models.small_models import FORMS, language_model, tokens

transformers = pytest.importorskip("transformers")

PACKED = torch.tensor([[0] * 7 + [1] + [2] * 11 + [-1] * 2, [5] * 20 + [6]])


@pytest.mark.parametrize(("mixer", "options"), FORMS)
def test_packed_documents_get_what_they_get_alone(mixer, options):
    model = language_model(mixer, **options).double()
    ids = tokens(2, 21)
    logits = model(ids, seq_idx=PACKED).logits
    for row, number in ((0, 0), (0, 1), (0, 2), (1, 5), (1, 6)):
        document = PACKED[row] == number
        alone = model(ids[row : row + 1, document]).logits
        torch.testing.assert_close(logits[row : row + 1, document], alone, rtol=1e-10, atol=1e-10)


def test_packed_documents_have_the_loss_and_gradients_of_separate_ones():
    ids = tokens(1, 18)
    documents = [ids[:, :7], ids[:, 7:18]]
    seq_idx = torch.tensor([[0] * 7 + [1] * 11])
    gradients = []
    for packed in (True, False):
        model = language_model().double()
        if packed:
            loss = model(ids, labels=ids, seq_idx=seq_idx).loss
        else:
            loss = sum(model(d, labels=d).loss * (d.shape[1] - 1) for d in documents) / 16
        loss.backward()
        gradients.append([loss, *(p.grad for p in model.parameters())])
    for ours, separate in zip(*gradients, strict=True):  # transformers' loss is in float32
        torch.testing.assert_close(ours, separate, rtol=1e-5, atol=1e-7)


def test_the_flattening_collator_packs_for_us(model):
    documents = [tokens(length, seed=length).tolist() for length in (4, 9, 1)]
    collate = transformers.DataCollatorWithFlattening(return_seq_idx=True)
    batch = collate([{"input_ids": document} for document in documents])
    output = model(**batch)
    alone = [model(torch.tensor([document])).logits for document in documents]
    torch.testing.assert_close(output.logits, torch.cat(alone, 1), rtol=1e-4, atol=1e-5)
    assert torch.isfinite(output.loss)

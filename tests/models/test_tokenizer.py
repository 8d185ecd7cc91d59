"""Facts about the tokenizer of bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

transformers = pytest.importorskip("transformers")

from polewise.models.tokenizer import byte_tokenizer  # noqa: E402

TOKENIZER = byte_tokenizer()
TEXTS = [
    "",
    "a",
    "naïve café",
    "日本語",
    "🎉 two  spaces\n\n\ttab",
    "Ā ā Ġ Ċ ÿ",
    " lead and trail ",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_token_is_a_byte_of_the_text(text):
    assert TOKENIZER(text)["input_ids"] == list(text.encode())
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(text):
    ids = TOKENIZER(text, split_special_tokens=True)["input_ids"]
    assert ids == list(text.encode())
    assert TOKENIZER.decode(ids) == text


def test_the_special_tokens_are_the_three_bytes_that_no_text_has():
    special = [TOKENIZER.eos_token_id, TOKENIZER.bos_token_id, TOKENIZER.pad_token_id]
    assert special == [253, 254, 255]
    assert len(TOKENIZER) == 256
    for byte in special:
        with pytest.raises(UnicodeDecodeError):
            bytes([byte]).decode()
    assert TOKENIZER("a<|eos|>")["input_ids"] == [97, 253]
    assert TOKENIZER.decode([97, 253, 255], skip_special_tokens=True) == "a"


def test_a_batch_is_padded_at_the_left():
    batch = TOKENIZER(["abc", "a"], padding=True)
    assert batch["input_ids"] == [[97, 98, 99], [255, 255, 97]]
    assert batch["attention_mask"] == [[1, 1, 1], [0, 0, 1]]


def test_it_is_saved_and_loaded_by_name(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert [again(text)["input_ids"] for text in TEXTS] == [list(t.encode()) for t in TEXTS]
    assert (again.padding_side, again.pad_token_id) == ("left", 255)
    messages = [{"role": "user", "content": "Hello"}]
    asked = again.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert asked == "user: Hello\nassistant: "

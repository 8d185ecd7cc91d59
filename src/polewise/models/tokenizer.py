"""Bytes as tokens: the number of a token is the byte of its UTF-8."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END, BEGIN, PADDING = "<|eos|>", "<|bos|>", "<|pad|>"
_SPECIAL = {253: END, 254: BEGIN, 255: PADDING}

_CHAT = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of a model of bytes (`vocab_size=256`), for everything that asks for one.

    Text becomes its UTF-8, nothing is added, and `decode(encode(text)) == text`. Three bytes that
    never occur in UTF-8 serve as special tokens, so every number stays below 256: 253 `<|eos|>`,
    254 `<|bos|>`, 255 `<|pad|>`. A model trained on text has never seen them. Written out in a text
    their names are these tokens; pass `split_special_tokens=True` for text that is not trusted.
    Batches are padded at the left, as generation needs it. Bytes that are no UTF-8 come out of
    `decode` as U+FFFD; `polewise.generate` gives the bytes themselves.
    """
    symbols = _symbol_of_each_byte()
    vocabulary = {_SPECIAL.get(byte, symbol): byte for byte, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False, special=True) for name in _SPECIAL.values()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        bos_token=BEGIN,
        pad_token=PADDING,
        padding_side="left",
        truncation_side="left",
        model_max_length=1 << 30,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        chat_template=_CHAT,
    )


def _symbol_of_each_byte() -> list[str]:
    """The printable character by which byte-level tokenizers write each byte."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in shown else next(others)) for byte in range(256)]

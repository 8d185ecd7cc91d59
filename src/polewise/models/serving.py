"""Serve a model over HTTP: transformers' own server, with our classes made known to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.import_utils import is_serve_available

from polewise.models import huggingface


def serve(model_folder: str | Path, *, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Answer OpenAI-style requests until Ctrl-C: /v1/completions, /v1/chat/completions, streamed.

    Args:
        model_folder: a saved language model with its tokenizer, such as a run's `model`. Requests
            name it as it is given here.
        host: the address to listen at; the default answers this machine alone.
        port: the port to listen at.

    Raises:
        ImportError: the packages of the extra `serve` are missing.
        ValueError: no language model, or no tokenizer, in the folder.
    """
    start(model_folder, host=host, port=port, in_background=False)


def start(model_folder: str | Path, *, host: str, port: int, in_background: bool) -> Any:
    """As `serve`; with `in_background` return the server, which `kill_server()` ends."""
    folder = Path(model_folder)
    if not is_serve_available():
        raise ImportError('serve needs more packages: pip install "polewise[serve]".')
    config, _ = PreTrainedConfig.get_config_dict(folder)
    if config.get("architectures") != ["PolewiseForCausalLM"]:
        raise ValueError(
            f"model_folder must hold a PolewiseForCausalLM; {folder} holds "
            f"{config.get('architectures')}."
        )
    if not (folder / "tokenizer_config.json").exists():
        raise ValueError(
            f"model_folder must hold a tokenizer; {folder} has none. For a model of bytes: "
            "polewise.models.tokenizer.byte_tokenizer().save_pretrained(folder)."
        )
    from transformers.cli.serve import Serve
    from transformers.cli.serving import model_manager

    # The server looks classes up on the module `transformers` that it imported. Importing parts of
    # the library, pipelines among them, puts a new module into its place: ours may be another.
    for name, value in vars(huggingface).items():
        if isinstance(value, type) and issubclass(value, PreTrainedModel):
            setattr(model_manager.transformers, name, value)
    return Serve(
        force_model=str(folder), device="auto" if torch.accelerator.is_available() else "cpu",
        host=host, port=port, log_level="warning", non_blocking=in_background,
    )  # fmt: skip

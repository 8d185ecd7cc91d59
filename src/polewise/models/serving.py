"""Serve a model over HTTP: transformers' own server, with our classes made known to it."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable
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

    A request without a temperature draws at 1, with one of 0 takes the likeliest token; `top_p` as
    usual. `seed` gives the same answer again where nothing else is answered at that time. Nothing
    but this model is loaded for anybody.

    Raises:
        ImportError: the packages of the extra `serve` are missing.
        ValueError: no language model, or no tokenizer, in the folder; or the port is in use.
    """
    start(model_folder, host=host, port=port, in_background=False)


def start(model_folder: str | Path, *, host: str, port: int, in_background: bool) -> Any:
    """As `serve`; with `in_background` return the server, which `kill_server()` ends."""
    folder = Path(model_folder)
    if not is_serve_available():
        raise ImportError(
            'serve needs more packages: in a checkout of Polewise pip install ".[serve]".'
        )
    if not (folder / "config.json").is_file():  # else the library asks the Hub for that name
        raise ValueError(f"model_folder must hold a saved model; {folder} has no config.json.")
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
    require_free_port(host, port)
    _prepare_server()
    from transformers.cli.serve import Serve

    return Serve(
        force_model=str(folder), device="auto" if torch.accelerator.is_available() else "cpu",
        host=host, port=port, log_level="warning", non_blocking=in_background,
    )  # fmt: skip


def require_free_port(host: str, port: int) -> None:
    """Check that a server can listen there, before a model is loaded for nothing.

    Raises:
        ValueError: it is no address of this machine, or somebody listens at it.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ValueError(
            "host and port must be an address of this machine that nobody listens at; "
            f"{host}:{port}: {error.strerror}."
        ) from error


_PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/models", "/health")
"""What is answered. The library's server has more, such as a path that loads any model of the hub
for whoever asks and one that forgets the model that is served."""


def _answer_for_this_model_alone(build: Callable[..., Any]) -> Callable[..., Any]:
    """Serve our paths alone; return errors to the client instead of only logging them."""

    @functools.wraps(build)
    def build_server(*args: Any, **kwargs: Any) -> Any:
        from fastapi.responses import JSONResponse

        app = build(*args, **kwargs)
        app.router.routes[:] = [route for route in app.router.routes if route.path in _PATHS]

        async def explain(_: Any, error: Exception) -> JSONResponse:
            message = f"a request must have {error}" if isinstance(error, KeyError) else str(error)
            return JSONResponse({"error": {"message": message}}, status_code=400)

        for mistake in (ValueError, KeyError, TypeError, AttributeError, RuntimeError):
            app.add_exception_handler(mistake, explain)

        return app

    return build_server


def _sample_unless_told_otherwise(build: Callable[..., Any]) -> Callable[..., Any]:
    """The library turns sampling off at a temperature of 0, and never on."""

    @functools.wraps(build)
    def build_generation_config(self: Any, body: dict, *args: Any, **kwargs: Any) -> Any:
        config = build(self, body, *args, **kwargs)
        if body.get("generation_config") is None:  # else it says all there is to say
            config.do_sample = body.get("temperature") != 0
            config.top_k = config.top_k or 0  # else the library draws among the likeliest 50
        return config

    return build_generation_config


_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "logprobs": (False,), "top_logprobs": (0,),
    "presence_penalty": (0, 0.0), "logit_bias": ({},), "suffix": ("",), "tools": ([],),
    "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "prediction": (), "reasoning_effort": ("none",),
    "modalities": (["text"],), "audio": (), "web_search_options": (),
}  # fmt: skip
"""Options of a request that the library takes and ignores; only these values of them, which change
nothing, are allowed."""


def _refuse_what_is_not_done(validate: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(validate)
    def validate_request(self: Any, body: dict) -> None:
        from transformers.cli.serving.completion import CompletionHandler

        for name, neutral in _NEUTRAL.items():
            asked = body.get(name)
            same = any(type(asked) is type(value) and asked == value for value in neutral)
            if asked is not None and not same:
                raise ValueError(f"{name} must be left out; got {body[name]!r}.")
        for message in body.get("messages") or ():
            parts = message.get("content")
            for part in parts if isinstance(parts, list) else ():
                if part.get("type") != "text":
                    raise ValueError(f"content must be text; got a part of {part.get('type')!r}.")
        if isinstance(self, CompletionHandler) and body.get("prompt", "") == "":
            raise ValueError("prompt must be a text to go on from; got none.")
        validate(self, body)

    return validate_request


@functools.cache
def _prepare_server() -> None:
    """What we change in the library's server, once a process."""
    from transformers.cli.serving import model_manager, server, utils

    # The server looks classes up on the module `transformers` that it imported. Importing parts of
    # the library, pipelines among them, puts a new module into its place: ours may be another.
    for name, value in vars(huggingface).items():
        if isinstance(value, type) and issubclass(value, PreTrainedModel):
            setattr(model_manager.transformers, name, value)
    for owner, name, changed in (
        (server, "build_server", _answer_for_this_model_alone),
        (utils.BaseHandler, "_build_generation_config", _sample_unless_told_otherwise),
        (utils.BaseHandler, "_validate_request", _refuse_what_is_not_done),
    ):
        setattr(owner, name, changed(getattr(owner, name)))

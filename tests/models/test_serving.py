"""Facts about the server: it answers on this machine, as clients expect it."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request

import pytest

pytest.importorskip("fastapi")

from polewise.models.serving import start


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def server(model_folder):
    port = free_port()
    running = start(model_folder, host="127.0.0.1", port=port, in_background=True)
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 600  # a busy machine takes its time to import
    while True:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).read()
            break
        except OSError:
            assert time.monotonic() < deadline, "the server did not come up"
            time.sleep(0.1)
    yield address, str(model_folder)
    running.kill_server()


def asked(server, path, **request):
    address, model = server
    defaults = {"model": model, "max_tokens": 5, "temperature": 0}
    data = json.dumps(defaults | request).encode()
    call = urllib.request.Request(
        f"{address}{path}", data, headers={"Content-Type": "application/json"}
    )
    return urllib.request.urlopen(call, timeout=600).read().decode()


def test_completions_and_chats_are_answered_whole_and_streamed(server):
    whole = json.loads(asked(server, "/v1/completions", prompt="It was"))
    assert len(whole["choices"]) == 1
    assert whole["usage"]["completion_tokens"] == 5
    pieces = asked(server, "/v1/completions", prompt="It was", stream=True)
    texts = [
        choice["text"]
        for line in pieces.splitlines()
        if line.startswith("data: {")
        for choice in json.loads(line.removeprefix("data: "))["choices"]
    ]
    assert "".join(texts) == whole["choices"][0]["text"]
    messages = [{"role": "user", "content": "Hello"}]
    chat = json.loads(asked(server, "/v1/chat/completions", messages=messages, stream=False))
    assert chat["choices"][0]["message"]["role"] == "assistant"
    streamed = asked(server, "/v1/chat/completions", messages=messages, stream=True)
    assert streamed.count("data: ") > 1


def test_a_request_chooses_its_temperature_and_what_it_asks_in_vain_is_said(server):
    def written(**request):
        answer = json.loads(asked(server, "/v1/completions", prompt="It was", **request))
        return answer["choices"][0]["text"]

    drawn = {written(temperature=1, seed=seed, max_tokens=20) for seed in range(4)}
    assert len(drawn) > 1
    assert written(temperature=1, seed=0, max_tokens=20) in drawn
    with pytest.raises(urllib.error.HTTPError) as refused:
        asked(server, "/v1/completions", prompt="")
    assert refused.value.code == 400
    assert "prompt must be a text to go on from" in refused.value.read().decode()
    for path, request in {
        "/v1/completions": {"prompt": "It was", "n": 3},
        "/v1/chat/completions": {},
    }.items():
        with pytest.raises(urllib.error.HTTPError) as refused:
            asked(server, path, **request)
        assert refused.value.code == 400
        assert "n must be left out" in (said := refused.value.read().decode()) or "messages" in said
    for name, value in {"logit_bias": {"32": -100}, "logprobs": 0}.items():
        with pytest.raises(urllib.error.HTTPError) as refused:
            asked(server, "/v1/completions", prompt="It was", **{name: value})
        assert f"{name} must be left out" in refused.value.read().decode()
    parts = [{"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(urllib.error.HTTPError) as refused:
        asked(server, "/v1/chat/completions", messages=[{"role": "user", "content": parts}])
    assert "content must be text; got a part of 'image_url'" in refused.value.read().decode()
    for path in ("/load_model", "/reset"):  # nobody may load or forget a model
        with pytest.raises(urllib.error.HTTPError) as absent:
            asked(server, path)
        assert absent.value.code == 404
    port = int(server[0].rsplit(":", 1)[1])
    with pytest.raises(ValueError, match="that nobody listens at"):
        start(server[1], host="127.0.0.1", port=port, in_background=True)


def test_a_folder_that_cannot_be_served_is_refused(model_folder):
    (model_folder / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="model_folder must hold a tokenizer"):
        start(model_folder, host="127.0.0.1", port=1, in_background=True)
    config = json.loads((model_folder / "config.json").read_text())
    config["architectures"] = ["PolewiseModel"]
    (model_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="model_folder must hold a PolewiseForCausalLM"):
        start(model_folder, host="127.0.0.1", port=1, in_background=True)

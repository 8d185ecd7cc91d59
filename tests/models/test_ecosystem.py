"""Facts about the tools around a Hugging Face model, each run for real and offline."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")

from polewise import (  # noqa: E402
    MIXERS,
    PolewiseConfig,
    PolewiseForCausalLM,
    PolewiseForSequenceClassification,
)
from polewise.models.tokenizer import byte_tokenizer  # noqa: E402

TEXT = "It was the best of times, it was the worst of times. " * 8


def test_the_three_auto_classes_find_the_model(byte_model, model_folder):
    ids = torch.tensor([list(b"It was")])
    config = transformers.AutoConfig.from_pretrained(model_folder)
    assert config.mixer_options["chunk_length"] == 8
    again = transformers.AutoModelForCausalLM.from_pretrained(model_folder)
    assert torch.equal(again(ids).logits, byte_model(ids).logits)
    labels = transformers.AutoModelForSequenceClassification.from_pretrained(
        model_folder, num_labels=3
    )
    assert labels(ids).logits.shape == (1, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_keeps_its_poles_in_float32(byte_model, model_folder, dtype):
    half = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype).eval()
    mixer = half.model.backbone.blocks[0].mixer
    assert mixer.to_values.weight.dtype == dtype
    ids = torch.tensor([list(b"It was the best of times")])
    logits, state = half.step(ids[:, :10])
    more, _ = half.step(ids[:, 10:], state)
    wanted = byte_model(ids).logits
    assert half(ids).logits.dtype == dtype
    torch.testing.assert_close(torch.cat([logits, more], 1).float(), wanted, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_model_that_is_built_in_half_precision_begins_like_one_in_float32(mixer):
    """bfloat16 counts to 256, and has nothing between 1 - 2^-8 and 1."""
    config = PolewiseConfig(mixer=mixer, hidden_size=256, num_hidden_layers=2, vocab_size=20)
    models = [
        transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    exact = set(PolewiseForCausalLM._keep_in_fp32_modules_strict)
    pairs = zip(*(model.named_parameters() for model in models), strict=True)
    for (name, wide), (_, half) in pairs:
        assert half.isfinite().all(), name
        decides_poles = not exact.isdisjoint(name.split("."))
        assert half.dtype == (torch.float32 if decides_poles else torch.bfloat16), name
        # Whatever is not drawn: drawn numbers of two precisions have nothing in common.
        if name.rsplit(".", 1)[-1] in ("base", "log_frequency", "frequency"):
            torch.testing.assert_close(half, wide)


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_model_of_any_mixer_reads_in_half_precision(mixer, tmp_path):
    torch.manual_seed(0)
    config = PolewiseConfig(mixer=mixer, hidden_size=16, num_hidden_layers=1, vocab_size=20)
    model = PolewiseForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    half = PolewiseForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    exact = half._keep_in_fp32_modules_strict
    for name, parameter in half.named_parameters():
        wide = not set(exact).isdisjoint(name.split("."))
        assert parameter.dtype == (torch.float32 if wide else torch.bfloat16), name
    ids = torch.randint(20, (2, 100))  # more than a bin of Focus
    logits, state = half.step(ids[:, :70])
    more, _ = half.step(ids[:, 70:], state)
    assert more.dtype == torch.bfloat16
    wanted = model(ids).logits
    assert (torch.cat([logits, more], 1).float() - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_a_pipeline_writes_the_same_for_a_batch_and_for_each(model_folder):
    pipe = transformers.pipeline("text-generation", model=str(model_folder))
    prompts = ["It was", "the worst of times, it", "T"]
    options = {"max_new_tokens": 6, "do_sample": False}
    together = pipe(prompts, batch_size=3, **options)
    for prompt, written in zip(prompts, together, strict=True):
        assert written[0]["generated_text"] == pipe(prompt, **options)[0]["generated_text"]
        assert written[0]["generated_text"].startswith(prompt)


class Windows(torch.utils.data.Dataset):
    ids = torch.tensor(list(TEXT.encode()))

    def __len__(self):
        return 24

    def __getitem__(self, index):
        window = self.ids[8 * index : 8 * index + 32]
        return {"input_ids": window, "labels": window}


def trainer(model, folder, **options):
    given = {
        "max_steps": 6, "save_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2,
        "report_to": [], "logging_nan_inf_filter": False, "use_cpu": True, "seed": 3,
        "disable_tqdm": True, "dataloader_pin_memory": False,
    }  # fmt: skip
    arguments = transformers.TrainingArguments(str(folder), **given | options)
    return transformers.Trainer(
        model, arguments, train_dataset=Windows(), eval_dataset=Windows(),
        processing_class=byte_tokenizer(),
    )  # fmt: skip


def test_the_trainer_trains_evaluates_saves_and_resumes(byte_model, tmp_path):
    before = trainer(byte_model, tmp_path / "before").evaluate()["eval_loss"]
    whole = trainer(byte_model, tmp_path / "whole")
    whole.train()
    assert whole.evaluate()["eval_loss"] < before
    torch.manual_seed(0)
    resumed = trainer(PolewiseForCausalLM(byte_model.config), tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_on_every_projection_learns_is_saved_and_merges(byte_model, tmp_path, checkpointing):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules="all-linear", r=2, task_type="CAUSAL_LM")
    model = peft.get_peft_model(byte_model, config)
    if checkpointing:
        model.enable_input_require_grads()
        model.base_model.model.activation_checkpointing_enable()
    model.train()
    ids = Windows.ids[None, :48]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    losses = []
    for _ in range(5):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.05
    model.eval()
    logits = model(input_ids=ids).logits
    model.save_pretrained(tmp_path)
    assert model.generate(input_ids=ids[:, :5], max_new_tokens=3).shape == (1, 8)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(ids).logits, logits, rtol=1e-3, atol=1e-4)
    places = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    names = {place.rsplit(".")[-1] for place in places}
    assert {"to_lookup", "to_values", "to_gate", "to_output", "up", "down"} <= names


def test_device_map_auto_places_the_model(byte_model, model_folder):
    placed = transformers.AutoModelForCausalLM.from_pretrained(model_folder, device_map="auto")
    ids = torch.tensor([list(b"It was")]).to(placed.device)
    torch.testing.assert_close(placed(ids).logits.cpu(), byte_model(ids.cpu()).logits)


def test_the_evaluation_harness_reads_and_writes_with_the_model(byte_model, model_folder):
    models = pytest.importorskip("lm_eval.models.huggingface")
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    judge = models.HFLM(pretrained=str(model_folder), device="cpu", batch_size=2)
    pairs = [("It was the", " best"), ("It was", " the worst of times"), ("T", "he")]
    requests = [
        instance(request_type="loglikelihood", doc={}, arguments=pair, idx=i)
        for i, pair in enumerate(pairs)
    ]
    found = judge.loglikelihood(requests)
    for (context, more), (likelihood, _) in zip(pairs, found, strict=True):
        ids = torch.tensor([list((context + more).encode())])
        logs = byte_model(ids).logits.detach().log_softmax(-1)[0, :-1]
        wanted = logs.gather(1, ids[0, 1:, None])[len(context.encode()) - 1 :].sum()
        assert likelihood == pytest.approx(float(wanted), rel=1e-3)
    until = {"until": ["\n\n"], "max_gen_toks": 4, "do_sample": False}
    requests = [
        instance(request_type="generate_until", doc={}, arguments=(context, until), idx=i)
        for i, (context, _) in enumerate(pairs)
    ]
    for (context, _), written in zip(pairs, judge.generate_until(requests), strict=True):
        ids = torch.tensor([list(context.encode())])
        alone = byte_model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
        assert written == byte_tokenizer().decode(alone, skip_special_tokens=True)


def test_the_evaluation_harness_runs_a_task_of_ones_own(
    byte_model, model_folder, tmp_path, monkeypatch
):
    evaluator = pytest.importorskip("lm_eval.evaluator")
    models = pytest.importorskip("lm_eval.models.huggingface")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"text": "It was the", "ends": [" best", " xqzj"], "right": 0}] * 3
    (tmp_path / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "endings",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(tmp_path / "rows.json")},
        "test_split": "train",
        "output_type": "multiple_choice",
        "doc_to_text": "text",
        "doc_to_choice": "ends",
        "doc_to_target": "right",
    }
    judge = models.HFLM(pretrained=str(model_folder), device="cpu", batch_size=2)
    found = evaluator.simple_evaluate(model=judge, tasks=[task], bootstrap_iters=0)
    ids = [torch.tensor([list(b"It was the" + end)]) for end in (b"  best", b"  xqzj")]
    logs = [byte_model(each).logits[0, :-1].detach().log_softmax(-1) for each in ids]
    sums = [
        float(log.gather(1, each[0, 1:, None])[9:].sum())
        for log, each in zip(logs, ids, strict=True)
    ]
    assert found["results"]["endings"]["acc,none"] == float(sums[0] > sums[1])


# The ideas of transformers' own common tests.


def test_a_model_is_built_on_the_meta_device(byte_model):
    with torch.device("meta"):
        empty = PolewiseForCausalLM(byte_model.config)
    assert all(parameter.is_meta for parameter in empty.parameters())


def test_a_tuple_holds_what_the_named_output_holds(byte_model):
    ids = torch.tensor([list(b"It was")])
    named = byte_model(ids, labels=ids, output_hidden_states=True)
    plain = byte_model(ids, labels=ids, output_hidden_states=True, return_dict=False)
    assert torch.equal(plain[0], named.loss)
    assert torch.equal(plain[1], named.logits)
    arguments = {"use_cache": True, "output_hidden_states": True, "return_dict": False}
    last, cache, hidden = byte_model.model(ids, **arguments)
    assert torch.equal(hidden[-1], last)
    assert cache.get_seq_length() == ids.shape[1]


def test_hidden_states_are_what_each_block_reads_and_the_last(byte_model):
    ids = torch.tensor([[255, 255, *b"It was"], [*b"It was t"]])
    mask = (ids != 255).long()
    output = byte_model(ids, attention_mask=mask, output_hidden_states=True)
    assert len(output.hidden_states) == 3
    alone = byte_model(ids[:1, 2:], output_hidden_states=True)
    for padded, single in zip(output.hidden_states, alone.hidden_states, strict=True):
        torch.testing.assert_close(padded[:1, 2:], single, rtol=1e-4, atol=1e-5)
    head = byte_model.lm_head(output.hidden_states[-1])
    torch.testing.assert_close(head, output.logits)


def test_embeddings_can_be_given_resized_and_are_tied(byte_model):
    ids = torch.tensor([list(b"It was")])
    given = byte_model(inputs_embeds=byte_model.get_input_embeddings()(ids)).logits
    torch.testing.assert_close(given, byte_model(ids).logits)
    byte_model.resize_token_embeddings(300)
    assert byte_model(ids).logits.shape[-1] == 300
    embedded = byte_model.get_input_embeddings()(ids)
    torch.testing.assert_close(byte_model(inputs_embeds=embedded).logits, byte_model(ids).logits)
    torch.testing.assert_close(embedded, 4 * byte_model.get_input_embeddings().weight[ids])
    assert byte_model.lm_head.weight is byte_model.get_input_embeddings().weight
    untied = PolewiseForCausalLM(
        PolewiseConfig(hidden_size=8, num_hidden_layers=1, tie_word_embeddings=False)
    )
    assert untied.lm_head.weight is not untied.get_input_embeddings().weight


def test_without_sampling_the_likeliest_token_comes_next(byte_model):
    ids = torch.tensor([list(b"It was")])
    written = byte_model.generate(ids, max_new_tokens=8, do_sample=False)
    for _ in range(8):
        likeliest = byte_model(ids).logits[:, -1:].argmax(-1)
        ids = torch.cat([ids, likeliest], 1)
    assert torch.equal(written, ids)


def test_a_gradient_reaches_the_hidden_states(byte_model):
    ids = torch.tensor([list(b"It was")])
    output = byte_model.train()(ids, labels=ids, output_hidden_states=True)
    for hidden in output.hidden_states:
        hidden.retain_grad()
    output.loss.backward()
    assert all(hidden.grad.abs().sum() > 0 for hidden in output.hidden_states)


# Export


class DecodeStep(nn.Module):
    """One token and the state's tensors in, logits and the new tensors out."""

    def __init__(self, model, state):
        super().__init__()
        self.model, self.like = model, state

    def forward(self, token, *leaves):
        from polewise import states

        stream = iter(leaves)
        state = states.map_state(lambda _: next(stream), self.like)
        logits, state = self.model.step(token, state)
        return logits, *states.tensors(state)


def decode_step(byte_model):
    from polewise import states

    with torch.no_grad():
        _, state = byte_model.step(torch.tensor([list(b"It was the best")]))
    leaves = [leaf.clone() for leaf in states.tensors(state)]
    return DecodeStep(byte_model, state).eval(), (torch.tensor([[32]]), *leaves)


def test_prefill_and_decode_step_are_exported_without_our_operators(byte_model):
    ids = torch.tensor([list(b"It was the best of times")])
    with torch.no_grad():
        prefill = torch.export.export(byte_model, (ids,), {"use_cache": False})
        logits = prefill.module()(ids, use_cache=False).logits
        torch.testing.assert_close(logits, byte_model(ids).logits, rtol=1e-4, atol=1e-5)
        step, inputs = decode_step(byte_model)
        exported = torch.export.export(step, inputs)
        for ours, theirs in zip(step(*inputs), exported.module()(*inputs), strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    for program in (prefill, exported):
        assert "polewise" not in program.graph_module.code


class Prefill(nn.Module):
    def __init__(self, mixer):
        super().__init__()
        config = PolewiseConfig(mixer=mixer, hidden_size=32, num_hidden_layers=2)
        self.model = PolewiseForCausalLM(config)

    def forward(self, ids):
        return self.model(ids, use_cache=False).logits


ANY_BATCH_AND_LENGTH = {"ids": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}}


@pytest.mark.parametrize("mixer", ["focus", "attention", "mamba2", "mamba3"])
def test_an_exported_program_takes_any_batch_and_length_where_both_are_left_open(mixer):
    model, ids = Prefill(mixer).eval(), torch.randint(256, (2, 100))
    with torch.no_grad():
        program = torch.export.export(model, (ids,), dynamic_shapes=ANY_BATCH_AND_LENGTH)
        for batch, length in ((1, 33), (3, 64), (2, 500)):
            ids = torch.randint(256, (batch, length))
            torch.testing.assert_close(program.module()(ids), model(ids), rtol=1e-4, atol=1e-4)


def test_a_model_that_reads_the_last_real_step_is_exported_with_both_left_open():
    model = PolewiseForSequenceClassification(
        PolewiseConfig(hidden_size=16, num_hidden_layers=2, pooling="last")
    ).eval()
    both = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}

    def arguments(batch, length):
        mask = torch.ones(batch, length, dtype=torch.long)
        mask[0, : length // 3] = 0
        return {"input_ids": torch.randint(256, (batch, length)), "attention_mask": mask}

    with torch.no_grad():
        shapes = {"input_ids": both, "attention_mask": both}
        program = torch.export.export(model, (), arguments(2, 70), dynamic_shapes=shapes)
        for batch, length in ((1, 33), (3, 80)):
            given = arguments(batch, length)
            torch.testing.assert_close(program.module()(**given).logits, model(**given).logits)


def test_a_prompt_of_any_length_runs_under_onnxruntime(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, ids = Prefill("focus").eval(), torch.randint(256, (2, 96))
    with torch.no_grad():
        torch.onnx.export(
            model, (ids,), tmp_path / "model.onnx", dynamo=True, verbose=False,
            dynamic_shapes=ANY_BATCH_AND_LENGTH,
        )  # fmt: skip
        session = runtime.InferenceSession(tmp_path / "model.onnx")
        for batch, length in ((1, 33), (2, 64), (1, 300)):
            ids = torch.randint(256, (batch, length))
            (found,) = session.run(None, {session.get_inputs()[0].name: ids.numpy()})
            torch.testing.assert_close(torch.from_numpy(found), model(ids), rtol=1e-3, atol=1e-3)


def test_the_decode_step_runs_under_onnxruntime(byte_model, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    step, inputs = decode_step(byte_model)
    with torch.no_grad():
        torch.onnx.export(step, inputs, tmp_path / "step.onnx", dynamo=True, verbose=False)
        wanted = step(*inputs)
    session = runtime.InferenceSession(tmp_path / "step.onnx")
    names = [given.name for given in session.get_inputs()]
    found = session.run(None, {n: i.numpy() for n, i in zip(names, inputs, strict=True)})
    for ours, theirs in zip(wanted, found, strict=True):
        torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-3, atol=1e-4)

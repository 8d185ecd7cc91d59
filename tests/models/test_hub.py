"""Facts about the folder that carries its own code."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")

from transformers.dynamic_module_utils import get_imports  # noqa: E402

from polewise import (  # noqa: E402
    MIXERS,
    FocusConfig,
    PolewiseConfig,
    PolewiseForCausalLM,
    PolewiseForSequenceClassification,
)
from polewise.models.hub import export_for_hub, flat_sources  # noqa: E402

ROOT = Path(__file__).parents[2]
LOAD = """
import json, sys
if sys.argv[2] == "without":
    class Blocked:
        def find_spec(self, name, *_):
            if name.split(".")[0] == "polewise":
                raise ModuleNotFoundError("No module named 'polewise'", name="polewise")
    sys.meta_path.insert(0, Blocked())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
logits, folders = [], json.loads(sys.argv[1])
for folder in folders:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules"), type(model).__module__
    ids = tokenizer("It was the best of times", return_tensors="pt").input_ids
    if folder == folders[-1]:  # once: every folder compiles its own loops
        model(ids, labels=ids).loss.backward()
    written = model.generate(ids, max_new_tokens=4, do_sample=False)
    assert written.shape[1] == ids.shape[1] + 4
    logits.append(model(ids).logits.tolist())
if sys.argv[2] == "beside":
    import polewise
    ours = polewise.PolewiseForCausalLM.from_pretrained(folder).eval()
    logits.append(ours(ids).logits.tolist())
print(json.dumps(logits))
"""


def loaded_elsewhere(folders, how, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps([str(folder) for folder in folders]), how],
        capture_output=True, text=True, check=False,
        env={"HF_HOME": str(tmp_path / "cache"), "PATH": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [torch.tensor(logits) for logits in json.loads(done.stdout)]


@pytest.mark.parametrize(("how", "count"), [("without", 1), ("beside", 2)])
def test_the_folder_loads_without_us_and_beside_us_twice(byte_model, tmp_path, how, count):
    folders = [tmp_path / str(number) for number in range(count)]
    for folder in folders:
        export_for_hub(byte_model, folder)
    ids = torch.tensor([list(b"It was the best of times")])
    wanted = byte_model(ids).logits
    for logits in loaded_elsewhere(folders, how, tmp_path):
        torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)


SAVE = """
import sys
from transformers import AutoModel, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
sys.modules["polewise"] = None
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
assert MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["polewise"] == type(model).__name__  # Trainer looks there
model.save_pretrained(sys.argv[2])
if len(sys.argv) > 3:
    AutoModel.from_pretrained(sys.argv[2], trust_remote_code=True)
"""


def test_a_folder_that_was_loaded_and_saved_again_is_whole(byte_model, tmp_path):
    export_for_hub(byte_model, tmp_path / "0")
    for words in (("0", "1"), ("1", "2", "again")):
        done = subprocess.run(
            [sys.executable, "-c", SAVE, *words],
            capture_output=True, text=True, check=False, cwd=tmp_path,
            env={"HF_HOME": str(tmp_path / "cache"), "PATH": "", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_the_folder_also_loads_as_ours(byte_model, tmp_path):
    export_for_hub(byte_model, tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is type(byte_model)
    card = (tmp_path / "README.md").read_text()
    assert "AutoModelForCausalLM" in card
    assert f"{sum(p.numel() for p in byte_model.parameters()):,} parameters" in card


def test_the_code_is_the_packages_own_with_nothing_else(tmp_path):
    sources = flat_sources()
    assert {"modeling_polewise", "mixers_focus", "ops_normal_form", "states"} <= set(sources)
    assert not any("training" in name or "cli" in name for name in sources)
    for name, source in sources.items():
        compile(source, name, "exec")
        assert "from polewise" not in source
        assert '"polewise::' not in source


def test_no_file_asks_for_more_than_the_card_says(byte_model, tmp_path):
    export_for_hub(byte_model, tmp_path)
    card = (tmp_path / "README.md").read_text()
    words = shlex.split(card.split("pip install ")[1].splitlines()[0])
    assert any(word in (ROOT / "pyproject.toml").read_text() for word in words if ">=" in word)
    named = {word.partition(">=")[0] for word in words}
    # What transformers insists on, file by file, when the folder comes from the Hub.
    wanted = {package for file in tmp_path.glob("*.py") for package in get_imports(file)}
    named.add("huggingface_hub")  # comes with transformers
    assert wanted - set(sys.stdlib_module_names) <= named
    assert "import triton" in (tmp_path / "ops__normal_form_triton.py").read_text()


def test_what_cannot_be_exported_is_refused(byte_model, tmp_path):
    with pytest.raises(ValueError, match="model must be one of PolewiseModel"):
        export_for_hub(torch.nn.Linear(2, 2), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="folder must not be a file"):
        export_for_hub(byte_model, tmp_path / "file")


def test_a_model_of_numbers_is_exported_without_a_tokenizer(tmp_path):
    config = PolewiseConfig(
        num_input_features=2, num_labels=3, hidden_size=8, num_hidden_layers=1,
        mixer_options={"chunk_length": 8, "bin_length": 8, "windows": 2},
    )  # fmt: skip
    export_for_hub(PolewiseForSequenceClassification(config), tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"]["AutoModel"]


def test_a_mixer_whose_code_would_not_be_there_is_refused(tmp_path, monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class Theirs(FocusConfig):
        pass

    monkeypatch.setitem(MIXERS, "theirs", Theirs)
    model = PolewiseForCausalLM(PolewiseConfig(mixer="theirs", hidden_size=8, num_hidden_layers=1))
    with pytest.raises(ValueError, match="model must have a mixer of Polewise"):
        export_for_hub(model, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()

"""Facts about the commands: what they do, and what they answer to a mistake."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.faults.runs import flip_bit

import polewise
from polewise.cli import COMMANDS, main
from polewise.cli.train import ModelFlags
from polewise.mixers import MIXERS
from polewise.training import ModelOptions, RunFolder

SMALL = [
    *("--hidden-size", "8", "--num-layers", "1", "--batch-size", "4"),
    *("--max-steps", "4", "--log-every", "2", "--evaluate-every", "2"),
]


def train_text(out="run"):
    Path("text.txt").write_text(str(sys.version_info) * 40 + "Quite another end. " * 7)
    words = ["train", "text", "--source", "text.txt", "--length", "16", *SMALL]
    return main([*words, "--set", "chunk_length=8", "--set", "bin_length=8", "--out", out])


def files_in(folder):
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("trian recall", "Did you mean 'train'?"),
        ("train", "train must be followed by a task, recall, mqar, "),
        ("train recal", "Did you mean 'recall'?"),
        ("train recall --lenght 8", "unknown option --lenght 8. Did you mean --length?"),
        ("train text --learning-rat 3", "Did you mean --learning-rate?"),
        ("train text --splitsequence --nosuch 3", "Did you mean --split-sequence?"),
        ("train recall --length x", "--length must be an integer; got 'x'."),
        ("train text --max-steps 1e3", "--max-steps must be None or an integer; got '1e3'."),
        ("train text --out caf\udce9", "out must be a path in UTF-8"),
        ("train recall --length 7", "length must be even"),
        ("train recall --length", "--length"),
        ("train recall --mixer fokus", "Did you mean 'focus'?"),
        ("train recall --set chunk_lenght=3", "Did you mean 'chunk_length'?"),
        ("train recall --set chunk_length=x", "chunk_length must be of type int; got 'x'."),
        ("train recall --set chunk_length", "set must be given as NAME=VALUE"),
        ("train recall --set max_decay=1.", "max_decay must lie between 0 and 1"),
        ("train recall --set causal=false", "causal"),
        ("train recall --max-steps 0", "max_steps must be positive; got 0."),
        ("train recall --learning-rate nan", "learning_rate must be positive; got nan."),
        ("train recall --precision float16", "--precision"),
        ("train text --source nothing.txt", "there is no file nothing.txt in /"),
        ("train text --source .", "is a directory."),
        ("train text --length 999999 --batch-size 1", "length must be less than the training part"),
        ("train images --source cifar", "--source"),
        ("train images --pooling lats", "--pooling"),
        ("train images --num-train 99999", "num_train must be at most 1397"),
        ("train selective_copy --num-tokens 999", "num_tokens must be at most length, 64"),
        ("train induction --test-lengths 64;3", "test_lengths must be lengths separated by commas"),
        ("train listops --max-length 33", "max_length must be an integer of at least 34; got 33."),
        ("train listops --source nowhere", "there is no file nowhere in /"),
        ("train spoken_digits --source nowhere", "there is no file nowhere in /"),
        ("train series --source vowels", "--source"),
        ("train forecast --source eth1", "Did you mean 'etth1'?"),
        ("train forecast --horizn 96", "unknown option --horizn 96. Did you mean --horizon?"),
        ("resume nowhere", "run must be a run folder"),
        ("train --resume nowhere", "run must be a run folder"),
        ("eval", "RUN is missing."),
        ("eval nowhere", "run must be a run folder (with a config.json); got nowhere."),
        ("generate nowhere --prompt a", "run must be a run folder"),
        ("generate nowhere", "--prompt"),
        ("stream nowhere", "run must be a run folder"),
        ("stream", "RUN is missing."),
        ("info nowhere", "run must be a run folder"),
        ("export nowhere --to-hub-folder hub", "run must be a run folder"),
        ("export nowhere", "--to-hub-folder"),
        ("serve nowhere", "run must be a run folder"),
        ("serve nowhere --port x", "--port must be an integer; got 'x'."),
        ("mixers fokus", "Did you mean 'focus'?"),
        ("data --fetch enwik", "Did you mean 'enwik8'?"),
        ("demo --text nothing.txt", "there is no file nothing.txt in /"),
    ],
)
def test_a_mistake_is_one_line_and_creates_nothing(words, answer, capsys, tmp_path):
    assert main(words.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("polewise: error: ")
    assert printed.err.count("\n") == 1
    assert answer in printed.err
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("train recall --lenth 5", "unknown option --lenth 5. Did you mean --length?"),
        ("train recall --length x", "--length must be an integer; got 'x'."),
        ("eval", "RUN is missing."),
    ],
)
def test_a_mistake_on_a_terminal_is_the_same_line(words, answer, capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert answer in error
    assert error.count("\n") == 1
    assert "\x1b" not in error


def test_the_nearest_option_is_the_same_in_a_narrow_terminal(capsys, monkeypatch):
    for columns in ("20", "40", "60"):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(["train", "text", "--splitsequence", "--nosuchoptionatall", "3"]) == 2
        assert "Did you mean --split-sequence?" in capsys.readouterr().err


def test_with_traceback_the_whole_account_is_raised():
    with pytest.raises(ValueError, match="run must be a run folder"):
        main(["info", "nowhere", "--traceback"])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example(name, capsys):
    assert main([*name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert f"polewise {name}" in text
    assert f"For example:\n  polewise {name}" in text


def test_the_overview_lists_every_command(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)


def test_a_text_run_trains_evaluates_writes_and_describes_itself(tmp_path, capsys):
    assert train_text() == 0
    assert "everything is in run" in capsys.readouterr().out
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == {"learning-curve.png", "poles-layer-0.png"}  # a memory's

    assert main(["eval", "run"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert 0 < measured["bits_per_byte"] < 20
    assert 1 < measured["xz_bits_per_byte"] < 8
    assert main(["eval", "run", "--part", "test"]) == 0
    tested = json.loads(capsys.readouterr().out)
    assert (measured["part"], tested["part"]) == ("valid", "test")
    assert measured["bits_per_byte"] != tested["bits_per_byte"]

    words = ["generate", "run", "--prompt", "Ein Ü", "--max-new-tokens", "20"]
    texts = []
    for more in ([], [], ["--seed", "1"]):
        assert main([*words, *more]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0].startswith("Ein Ü")
    assert texts[0] == texts[1] != texts[2]

    assert main(["info", "run"]) == 0
    text = capsys.readouterr().out
    for part in ("task        text", "parameters", "after 16 steps", "step-4", "poles-layer-0.png"):
        assert part in text


def test_a_text_that_has_changed_since_is_not_evaluated(capsys):
    assert train_text() == 0
    with open("text.txt", "a") as file:  # what was held out would move into what was learned
        file.write("More. " * 100)
    assert main(["eval", "run"]) == 2
    assert "the data must be what run began with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (MemoryError(), "out of memory. Take less of it"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory."),
        (OSError(28, "No space left on device", "page.html"), "No space left on device"),
    ],
)
def test_what_the_machine_refuses_is_one_line(error, answer, monkeypatch, capsys):
    def refuse() -> int:
        """Fail."""
        raise error

    monkeypatch.setitem(COMMANDS, "mixers", refuse)
    assert main(["mixers"]) == 1
    printed = capsys.readouterr().err
    assert answer in printed
    assert printed.count("\n") == 1


def test_a_class_can_be_read_from_the_last_step(tmp_path):
    words = "--source digits --pooling last --hidden-size 8 --max-steps 1 --num-eval 8 --out run"
    assert main(["train", "images", *words.split()]) == 0
    run = RunFolder.open(tmp_path / "run").read_run()
    assert run.model.pooling == "last"
    assert RunFolder.open(tmp_path / "run").load_model().config.pooling == "last"


def test_a_forecast_is_described_and_exported_without_its_table(tmp_path, capsys):
    rows = "".join(f"t{n},{n % 5},{n % 7}\n" for n in range(200))
    table = tmp_path / "table.csv"
    table.write_text("date,a,b\n" + rows)
    run = tmp_path / "run"
    command = f"train forecast --source {table} --length 8 --horizon 4 --hidden-size 8"
    assert main([*command.split(), "--max-steps", "1", "--out", str(run)]) == 0
    table.unlink()
    assert main(["info", str(run)]) == 0
    assert main(["export", str(run), "--to-hub-folder", str(tmp_path / "hub")]) == 0
    capsys.readouterr()


def test_a_prompt_that_will_not_do_is_explained(capsys):
    assert train_text() == 0
    capsys.readouterr()
    for words, answer in (
        (["--prompt", ""], "prompt must not be empty"),
        (["--prompt", "a", "--temperature", "-1"], "temperature must"),
        (["--prompt", "a", "--top-k", "0"], "top_k must be an integer of"),
        (["--prompt", "a", "--max-new-tokens", "0"], "max_new_tokens must be an integer of"),
    ):
        assert main(["generate", "run", *words]) == 2
        assert answer in capsys.readouterr().err


def test_export_writes_a_folder_that_is_refused_when_taken(text_run, tmp_path, capsys):
    words = ["export", text_run, "--to-hub-folder", "hub"]
    assert main(words) == 0
    assert "everything is in hub" in capsys.readouterr().out
    assert (tmp_path / "hub" / "model.safetensors").is_file()
    assert main(words) == 2
    assert "to_hub_folder must be a new or empty folder; hub exists." in capsys.readouterr().err


def test_an_export_that_cannot_be_written_leaves_nothing(text_run, tmp_path, capsys, little_room):
    with little_room():
        assert main(["export", text_run, "--to-hub-folder", "hub"]) == 1
    said = capsys.readouterr().err
    assert "the model must be written to hub, and could not be" in said
    assert "then export it again" in said
    assert list((tmp_path / "hub").iterdir()) == []
    assert main(["export", text_run, "--to-hub-folder", "hub"]) == 0


@pytest.mark.parametrize("port", ["0", "80800"])
def test_a_port_that_is_none_is_refused(text_run, port, capsys):
    assert main(["serve", text_run, "--port", port]) == 2
    assert f"port must be between 1 and 65535; got {port}." in capsys.readouterr().err


def test_serve_hands_over_the_best_model(text_run, monkeypatch):
    called = {}
    monkeypatch.setattr(
        "polewise.models.serving.serve", lambda path, **where: called.update(path=path, **where)
    )
    assert main(["serve", text_run, "--port", "8123"]) == 0
    assert called == {"path": Path(text_run) / "model", "host": "127.0.0.1", "port": 8123}


def test_serve_hands_over_no_model_that_is_damaged_or_missing(text_run, monkeypatch, capsys):
    run = shutil.copytree(text_run, "copy")
    monkeypatch.setattr("polewise.models.serving.serve", lambda *_, **__: pytest.fail("served"))
    flip_bit(Path(run) / "model" / "model.safetensors")
    assert main(["serve", run]) == 2
    assert "model.safetensors is not what was written" in capsys.readouterr().err
    shutil.rmtree(Path(run) / "model")
    assert main(["serve", run]) == 2
    assert "has none yet" in capsys.readouterr().err
    assert main(["info", run]) == 0
    assert "parameters" in capsys.readouterr().out


def test_a_finished_run_is_read_without_the_memory_to_train_it(text_run, monkeypatch, capsys):
    def too_large(names, num_bytes):
        raise ValueError(f"{names} must fit into memory")

    monkeypatch.setattr("polewise.training.building.require_memory", too_large)
    assert main(["info", text_run]) == 0
    assert "parameters" in capsys.readouterr().out
    assert RunFolder.open(text_run).load_model() is not None


def test_a_package_that_serve_misses_is_named(text_run, monkeypatch, capsys):
    def missing(*_, **__):
        raise ImportError("serve needs more packages: pip install ...")

    monkeypatch.setattr("polewise.models.serving.serve", missing)
    assert main(["serve", text_run]) == 2
    assert "serve needs more packages" in capsys.readouterr().err


def test_resume_continues_and_a_folder_in_use_is_refused(capsys):
    words = ["train", "recall", "--length", "6", "--mixer", "attention", *SMALL, "--out", "run"]
    assert main(words) == 0
    assert main(words) == 2
    assert "out must be a new or empty folder" in capsys.readouterr().err
    assert main(["train", "--resume", "run"]) == 2
    assert "has spent" in capsys.readouterr().err
    assert main(["train", "recall", "--resume", "run", "--max-steps", "6"]) == 0
    assert "finished after 6 steps" in capsys.readouterr().out


def test_a_budget_in_seconds_replaces_the_recipes_budget_in_steps(tmp_path):
    words = ["train", "recall", "--length", "6", "--mixer", "attention", "--out", "run"]
    assert main([*words, "--max-seconds", "0.2", "--hidden-size", "8"]) == 0
    training = json.loads((tmp_path / "run" / "config.json").read_text())["training"]
    assert (training["max_steps"], training["max_seconds"]) == (None, 0.2)


def test_recall_inputs_follow_the_chunk_length(tmp_path):
    words = ["train", "recall", "--length", "6", *SMALL, "--out", "run"]
    assert main([*words, "--set", "chunk_length=16"]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["task"]["align_to"] == 16


def test_a_mixer_lists_its_options_as_they_are_typed(capsys):
    assert main(["mixers", "focus"]) == 0
    said = capsys.readouterr().out
    assert "--set chunk_length=0\n" in said
    assert "--set hypernetwork=none\n" in said
    assert main(["mixers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(MIXERS)
    assert len({line.split(maxsplit=1)[1] for line in lines}) == len(MIXERS)  # each says its own


@pytest.mark.parametrize(
    ("typed", "means"),
    [
        ("hypernetwork=none", {"hypernetwork": "none"}),
        ("key-dim=32", {"key_dim": 32}),
        ("heads=none", {"heads": None}),
        ("sliding=True", {"sliding": True}),
        ("max_decay=0.5", {"max_decay": 0.5}),
        ("realisation=direct", {"realisation": "direct"}),
    ],
)
def test_none_is_a_word_where_it_is_one_of_the_choices(typed, means):
    flags = ModelFlags(mixer="focus", set=(typed,))
    options = flags.over(ModelOptions(mixer="focus")).mixer_options
    assert options.items() >= means.items()


def test_data_sets_that_are_absent_are_listed_with_their_place(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("POLEWISE_DATA", str(tmp_path))
    assert main(["data"]) == 0
    text = capsys.readouterr().out
    assert f"place {tmp_path}/enwik8/enwik8" in text
    assert "t10k-labels-idx1-ubyte.gz" in text


def test_fetching_without_a_network_says_so_and_where_the_file_belongs(
    tmp_path, monkeypatch, capsys
):
    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setenv("POLEWISE_DATA", str(tmp_path / "data"))
    assert main(["data", "--fetch", "text8"]) == 2
    error = capsys.readouterr().err
    assert "no route to host" in error
    assert str(tmp_path / "data/text8/text8") in error
    assert not (tmp_path / "data").exists()


def test_without_the_packages_of_the_commands_one_line_says_what_to_install():
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from polewise.__main__ import main\nraise SystemExit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("polewise: error: the commands need matplotlib")
    assert done.stderr.count("\n") == 1


def test_closed_streams_are_no_error():
    command = f"{sys.executable} -m polewise mixers focus <&- >&- 2>&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m polewise train text --help | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == ""


def test_the_module_runs_as_a_program():
    source = str(Path(polewise.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "polewise", "trian"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": source},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("polewise: error: ")
    assert "Traceback" not in done.stderr

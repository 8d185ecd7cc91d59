"""Facts about spoken digits."""

from __future__ import annotations

import io
import os
import tarfile
import wave
from itertools import islice

import numpy as np
import pytest
import torch

from polewise.tasks import SpokenDigitsTask
from polewise.tasks.data_sets import DATA_SETS, locate

SPEAKERS = ("anna", "bert", "cleo")


def wav(samples, *, rate=8000, channels=1, width=2):
    packed = io.BytesIO()
    with wave.open(packed, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return packed.getvalue()


def samples_of(digit, speaker, number):
    generator = np.random.default_rng([digit, SPEAKERS.index(speaker), number])
    return generator.integers(-3000, 3000, size=3 + 2 * number + digit)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A folder of twelve recordings of two digits by each of three speakers."""
    folder = tmp_path_factory.mktemp("recordings")
    for digit in (0, 7):
        for speaker in SPEAKERS:
            for number in range(12):
                name = f"{digit}_{speaker}_{number}.wav"
                (folder / name).write_bytes(wav(samples_of(digit, speaker, number)))
    (folder / "README.md").write_text("not a recording")
    return folder


def packed(folder, path):
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, arcname="recordings")
    return path


def names_in(task, part):
    return {(r.digit, r.speaker, r.number) for r in task._parts[part]}


def test_the_official_split_tests_on_the_first_recordings_of_everyone(recordings):
    task = SpokenDigitsTask(source=str(recordings))
    task.prepare()
    for part, numbers in (("test", range(5)), ("valid", range(5, 10)), ("train", (10, 11))):
        wanted = {(d, s, n) for d in (0, 7) for s in SPEAKERS for n in numbers}
        assert names_in(task, part) == wanted


def test_a_test_speaker_is_never_heard_before(recordings):
    task = SpokenDigitsTask(source=str(recordings), test_speaker="bert", part="test")
    task.prepare()
    others = [speaker for speaker in SPEAKERS if speaker != "bert"]
    assert names_in(task, "test") == {(d, "bert", n) for d in (0, 7) for n in range(12)}
    for part, numbers in (("valid", range(5, 10)), ("train", (0, 1, 2, 3, 4, 10, 11))):
        assert names_in(task, part) == {(d, s, n) for d in (0, 7) for s in others for n in numbers}


def test_inputs_are_scaled_cut_and_padded_and_lengths_say_where_they_end(recordings):
    task = SpokenDigitsTask(source=str(recordings), length=20, batch_size=100)
    train = [samples_of(d, s, n) for d in (0, 7) for s in SPEAKERS for n in (10, 11)]
    mean, deviation = np.concatenate(train).mean(), np.concatenate(train).std()
    (batch,) = task.eval_batches()
    assert batch["inputs"].shape == (30, 20, 1)
    row = 0
    for digit in (0, 7):
        for speaker in SPEAKERS:
            for number in range(5, 10):
                wanted = (samples_of(digit, speaker, number)[:20] - mean) / deviation
                end = int(batch["lengths"][row])
                assert int(batch["labels"][row]) == digit
                assert end == len(wanted) == min(20, 3 + 2 * number + digit)
                np.testing.assert_allclose(batch["inputs"][row, :end, 0], wanted, rtol=1e-5)
                assert not batch["inputs"][row, end:].any()
                row += 1


def test_several_samples_a_step_are_the_same_samples_in_fewer_steps(recordings):
    one = SpokenDigitsTask(source=str(recordings), length=24)
    four = SpokenDigitsTask(source=str(recordings), length=24, samples_per_step=4)
    assert (four.spec.length, four.spec.num_features) == (6, 4)
    for single, several in zip(one.eval_batches(), four.eval_batches(), strict=True):
        wanted = single["inputs"].flatten(1)
        wanted = torch.nn.functional.pad(wanted, (0, -wanted.shape[1] % 4))
        assert torch.equal(several["inputs"].flatten(1), wanted)
        wanted = [np.ceil(end / 4) for end in single["lengths"].tolist()]
        assert several["lengths"].tolist() == wanted
    with pytest.raises(ValueError, match="length must be a multiple of samples_per_step, 5; got 2"):
        SpokenDigitsTask(length=24, samples_per_step=5)


def test_an_archive_and_its_folder_give_the_same(recordings, tmp_path):
    archive = SpokenDigitsTask(source=str(packed(recordings, tmp_path / "digits.tar.gz")))
    folder = SpokenDigitsTask(source=str(recordings))
    assert archive.fingerprint() == folder.fingerprint()
    for one, other in zip(archive.eval_batches(), folder.eval_batches(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_resumed_at_any_step_hears_everything_once_an_epoch(recordings):
    task = SpokenDigitsTask(source=str(recordings), batch_size=5)
    steps = list(islice(task.train_batches(2), 4))
    again = next(task.train_batches(2, first_step=3))
    assert torch.equal(again["inputs"], steps[3]["inputs"])
    rows = [
        row[:end].numpy().tobytes()
        for batch in steps
        for row, end in zip(batch["inputs"], batch["lengths"], strict=True)
    ]
    assert len(set(rows[:12])) == 12  # recordings to train


def test_a_batch_is_as_long_as_its_longest_recording(recordings):
    task = SpokenDigitsTask(source=str(recordings), batch_size=2)
    widths = set()
    for batch in task.eval_batches():
        assert batch["inputs"].shape[1] == batch["lengths"].max()
        widths.add(batch["inputs"].shape[1])
    assert len(widths) > 1


def test_other_recordings_have_another_fingerprint(recordings, tmp_path):
    for file in recordings.glob("*.wav"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    before = SpokenDigitsTask(source=str(tmp_path)).fingerprint()
    assert before == SpokenDigitsTask(source=str(recordings)).fingerprint()
    (tmp_path / "0_anna_3.wav").write_bytes(wav(samples_of(0, "anna", 3) + 1))
    assert SpokenDigitsTask(source=str(tmp_path)).fingerprint() != before


TONE = np.arange(50)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("0_anna_0.wav", wav(TONE)[:-7], r"0_anna_0.wav announces 50 samples and has 46"),
        ("0_anna_0.wav", wav(TONE)[:20], r"complete wav files; 0_anna_0.wav"),
        ("0_anna_0.wav", b"no wav at all", r"complete wav files; 0_anna_0.wav"),
        ("0_anna_0.wav", b"", r"complete wav files; 0_anna_0.wav"),
        ("0_anna_0.wav", wav(TONE[:0]), r"announces 0 samples"),
        ("0_anna_0.wav", wav(TONE, rate=16000), r"8000 Hz; 0_anna_0.wav has 1, 16 and 16000"),
        ("0_anna_0.wav", wav(TONE, channels=2), r"1 channel, .*; 0_anna_0.wav has 2, 16 and 8000"),
        ("anna.wav", wav(TONE), r"named DIGIT_SPEAKER_NUMBER.wav; got anna.wav"),
        ("readme.txt", b"", r"source must hold wav files; .* has none"),
        ("0_anna_10.wav", wav(TONE), r"has 1 in all and none for valid"),
        ("0_anna_5.wav", wav(TONE), r"has 1 in all and none for train"),
    ],
)
def test_recordings_that_will_not_do_are_explained(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        SpokenDigitsTask(source=str(tmp_path)).prepare()


def test_two_recordings_of_one_name_are_not_one(recordings, tmp_path):
    with tarfile.open(tmp_path / "twice.tar", "w") as archive:
        for folder in ("a", "b"):
            archive.add(recordings / "0_anna_0.wav", f"{folder}/0_anna_0.wav")
    with pytest.raises(ValueError, match=r"every recording once; .*twice\.tar has two 0_anna_0"):
        SpokenDigitsTask(source=str(tmp_path / "twice.tar")).prepare()


def test_a_pipe_among_the_recordings_is_not_waited_for(recordings, tmp_path):
    os.mkfifo(tmp_path / "0_anna_0.wav")
    with pytest.raises(ValueError, match="it is a folder, a pipe or a device"):
        SpokenDigitsTask(source=str(tmp_path)).prepare()


def test_a_broken_archive_is_explained(recordings, tmp_path):
    path = packed(recordings, tmp_path / "digits.tar.gz")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"source must be readable; .*digits.tar.gz"):
        SpokenDigitsTask(source=str(path)).prepare()
    path.rename(tmp_path / "digits.tar")
    with pytest.raises(ValueError, match=r"source must be a whole archive of wav files"):
        SpokenDigitsTask(source=str(tmp_path / "digits.tar")).prepare()


def test_a_mistyped_speaker_is_answered_with_the_nearest(recordings):
    task = SpokenDigitsTask(source=str(recordings), test_speaker="brt")
    with pytest.raises(ValueError, match=r"one of anna, bert, cleo; got 'brt'. Did you mean 'bert"):
        task.prepare()


def test_absent_recordings_name_the_place_and_the_way(tmp_path, monkeypatch):
    monkeypatch.setenv("POLEWISE_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"place it at .*/fsdd_recordings.tar.gz .*--source"):
        SpokenDigitsTask().prepare()
    with pytest.raises(ValueError, match=r"there is no .*nowhere"):
        SpokenDigitsTask(source=str(tmp_path / "nowhere")).prepare()


def test_the_data_set_has_its_published_split():
    if locate(DATA_SETS["spoken_digits"].files[0]) is None:
        pytest.skip("the recordings are not on disk; `polewise data` says where they belong")
    task = SpokenDigitsTask()
    assert {part: len(recordings) for part, recordings in task._parts.items()} == {
        "train": 2400, "valid": 300, "test": 300
    }  # fmt: skip
    lengths = sorted(len(recording.samples) for recording in task._recordings)
    assert (lengths[0], lengths[-1], sum(n <= 8192 for n in lengths)) == (1148, 18262, 2983)

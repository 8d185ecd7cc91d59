"""Facts about series of several channels."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from polewise.tasks import SeriesTask
from polewise.tasks.data_sets import DATA_SETS, locate
from polewise.tasks.series import read_ts

HEADER = """#A comment.
@problemName JapaneseVowels
@timeStamps false
@missing false
@univariate false
@dimensions 12
@equalLength false
@classLabel true 1 2 3 4 5 6 7 8 9
@data
"""


def values_of(label, number):
    generator = np.random.default_rng([label, number])
    return generator.normal(label, 2, size=(7 + (3 * number + label) % 20, 12)).round(6)


def line_of(label, number):
    channels = [",".join(map(str, column)) for column in values_of(label, number).T]
    return ":".join([*channels, str(label)])


@pytest.fixture
def vowels(tmp_path, monkeypatch):
    """Files of the set's form: 9 classes with 11 cases to train and 2 to test, mixed up."""
    folder = tmp_path / "uea/JapaneseVowels"
    folder.mkdir(parents=True)
    for part, numbers in (("TRAIN", range(11)), ("TEST", range(11, 13))):
        lines = [line_of(label, number) for number in numbers for label in range(1, 10)]
        (folder / f"JapaneseVowels_{part}.ts").write_text(HEADER + "\n".join(lines) + "\n")
    monkeypatch.setenv("POLEWISE_DATA", str(tmp_path))
    return folder


def test_every_fifth_case_of_a_class_validates_and_the_test_file_tests(vowels):
    task = SeriesTask()
    task.prepare()
    for part, numbers in (
        ("train", (0, 1, 2, 3, 5, 6, 7, 8, 10)),
        ("valid", (4, 9)),
        ("test", (11, 12)),
    ):
        wanted = [values_of(label, number) for number in numbers for label in range(1, 10)]
        assert [series.label for series in task._parts[part]] == list(range(9)) * len(numbers)
        for series, values in zip(task._parts[part], wanted, strict=True):
            np.testing.assert_allclose(series.values, values, rtol=1e-6)


def test_channels_are_scaled_by_the_training_part_and_padded(vowels):
    task = SeriesTask(part="test")
    train = np.concatenate(
        [values_of(c, n) for c in range(1, 10) for n in (0, 1, 2, 3, 5, 6, 7, 8, 10)]
    )
    (batch,) = task.eval_batches()
    assert batch["inputs"].shape == (18, 29, 12)
    for row in range(18):
        values = values_of(row % 9 + 1, 11 + row // 9)
        wanted = (values - train.mean(0)) / train.std(0)
        length = int(batch["lengths"][row])
        assert length == len(wanted)
        np.testing.assert_allclose(batch["inputs"][row, :length], wanted, rtol=1e-3, atol=1e-5)
        assert not batch["inputs"][row, length:].any()


def test_a_run_resumed_at_any_step_sees_everything_once_an_epoch(vowels):
    task = SeriesTask(batch_size=30)
    steps = list(islice(task.train_batches(2), 4))
    again = next(task.train_batches(2, first_step=3))
    assert torch.equal(again["inputs"], steps[3]["inputs"])
    epoch = torch.cat([batch["inputs"] for batch in steps])[:81]
    assert len({row.numpy().tobytes() for row in epoch}) == 81


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("@timeStamps false", "@timeStamps true", "line 10: values have times of their own"),
        ("@classLabel true 1 2", "@classLabel true 2", "line 10: @classLabel must be true and 9"),
        ("@classLabel true", "@classLabel", "line 10: @classLabel must be true and 9"),
        ("@data\n", "@data\nvowel\n", "line 10: the class is 'vowel' and not one of 1, 2"),
        ("@data\n", "@data\n1\n", "line 10: channels have different lengths, or there are none"),
        ("@data\n", "@data\n1,2:3:1\n", "line 10: channels have different lengths"),
        ("@data\n", "@data\n1,?:3,4:1\n", r"line 10: could not convert string to float: .*'\?'"),
        ("@data\n", "@data\n1,nan:3,4:1\n", "line 10: a value is missing"),
        ("@data\n", "@data\n1,2:3,4:1\n", "source must have 12 channels and at most 29 steps; jap"),
    ],
)
def test_a_file_of_another_form_is_explained(old, new, message, vowels):
    path = vowels / "JapaneseVowels_TRAIN.ts"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        SeriesTask().prepare()


def test_a_file_without_cases_or_without_training_is_explained(vowels):
    path = vowels / "JapaneseVowels_TRAIN.ts"
    path.write_text(HEADER)
    with pytest.raises(ValueError, match=r"JapaneseVowels_TRAIN\.ts has no cases"):
        SeriesTask().prepare()
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"source must be readable; .*JapaneseVowels_TRAIN\.ts"):
        SeriesTask().prepare()
    path.write_text(HEADER + line_of(1, 0))
    with pytest.raises(ValueError, match="japanese_vowels has none for valid"):
        SeriesTask().prepare()


def test_other_values_have_another_fingerprint(vowels):
    before = SeriesTask().fingerprint()
    assert SeriesTask().fingerprint() == before
    path = vowels / "JapaneseVowels_TEST.ts"
    path.write_text(path.read_text().replace(":1\n", ":2\n", 1))
    assert SeriesTask().fingerprint() != before


def test_absent_series_name_the_place_and_the_way(tmp_path, monkeypatch):
    monkeypatch.setenv("POLEWISE_DATA", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"place it at .*/JapaneseVowels_TRAIN\.ts .*timeseriescla"
    ):
        SeriesTask().prepare()
    with pytest.raises(ValueError, match="Did you mean 'basic_motions'"):
        SeriesTask(source="basicmotions")


@pytest.mark.parametrize(
    ("source", "train", "test", "lengths"),
    [
        ("japanese_vowels", [30] * 9, [31, 35, 88, 44, 29, 24, 40, 50, 29], (7, 29)),
        ("basic_motions", [10] * 4, [10] * 4, (100, 100)),
    ],
)
def test_the_sets_have_their_published_cases(source, train, test, lengths):
    paths = [locate(file) for file in DATA_SETS[source].files]
    if None in paths:
        pytest.skip(f"{source} is not on disk; `polewise data` says where it belongs")
    parts = [read_ts(path, num_classes=len(train)) for path in paths]
    for several, counts in zip(parts, (train, test), strict=True):
        assert np.bincount([series.label for series in several]).tolist() == counts
    steps = [len(series.values) for several in parts for series in several]
    assert (min(steps), max(steps)) == lengths
    SeriesTask(source=source).prepare()

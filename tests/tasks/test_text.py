"""Facts about the text task."""

import itertools
import lzma
import zipfile

import pytest
import torch
from torch import nn

from polewise.tasks import TextTask, on_test_part
from polewise.tasks.byte_source import FileBytes
from polewise.tasks.data_sets import DATA_SETS, locate


def write_text(folder, num=2000, name="text.txt"):
    path = folder / name
    path.write_bytes(bytes(i * 7919 % 251 for i in range(num)))
    return path


def test_every_held_out_byte_is_predicted_exactly_once_from_the_byte_before(tmp_path):
    path = write_text(tmp_path)
    content = path.read_bytes()
    for part, first, last in (("valid", 1800, 1900), ("test", 1900, 2000)):
        task = TextTask(source=str(path), length=7, batch_size=4, part=part)
        batches = list(task.eval_batches())
        labels = torch.cat([batch["labels"].flatten() for batch in batches])
        inputs = torch.cat([batch["inputs"].flatten() for batch in batches])
        kept = labels != -100
        assert bytes(labels[kept].tolist()) == content[first:last]
        assert bytes(inputs[kept].tolist()) == content[first - 1 : last - 1]
        assert task.held_out_text() == content[first:last]


def test_eval_bytes_limits_the_held_out_text(tmp_path):
    task = TextTask(source=str(write_text(tmp_path)), length=7, eval_bytes=20)
    labels = torch.cat([batch["labels"].flatten() for batch in task.eval_batches()])
    assert int((labels != -100).sum()) == 20 == len(task.held_out_text())


def test_training_windows_lie_in_the_training_part_and_labels_are_the_next_byte(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(90) + bytes([1]) * 10)  # the training part is all zeros
    task = TextTask(source=str(path), length=80, batch_size=64)
    for batch in itertools.islice(task.train_batches(0), 5):
        assert batch["inputs"].eq(0).all()
        assert batch["labels"].eq(0).all()
    task = TextTask(source=str(write_text(tmp_path)), length=9)
    batch = next(task.train_batches(0))
    assert torch.equal(batch["inputs"][:, 1:], batch["labels"][:, :-1])


def test_training_resumes_at_any_step():
    task = TextTask(length=16, batch_size=4)
    steps = list(itertools.islice(task.train_batches(5), 4))
    again = next(TextTask(length=16, batch_size=4).train_batches(5, first_step=3))
    assert torch.equal(again["inputs"], steps[3]["inputs"])
    assert not torch.equal(steps[0]["inputs"], steps[1]["inputs"])


def test_bits_per_byte_of_a_blind_model_is_eight(tmp_path):
    task = TextTask(source=str(write_text(tmp_path)), length=32)
    total, count = 0.0, 0
    for batch in task.eval_batches():
        bits, number = task.metrics(torch.zeros(*batch["labels"].shape, 256), batch)[
            "bits_per_byte"
        ]
        total, count = total + float(bits), count + int(number)
    assert count == 100
    assert total / count == pytest.approx(8)


def test_the_compressor_reads_the_held_out_text_alone(tmp_path):
    task = TextTask(source=str(write_text(tmp_path)))
    text = task.held_out_text()
    assert task.compressor_bits_per_byte() == 8 * len(lzma.compress(text, preset=9)) / len(text)


def test_the_embedded_text_needs_no_file():
    task = TextTask()
    task.prepare()
    assert len(task.held_out_text()) > 10_000


def test_a_file_is_read_only_where_it_is_asked_for(tmp_path):
    path = tmp_path / "large.txt"
    with path.open("wb") as file:
        file.truncate(100_000_000)  # sparse: the standard size of enwik8 and text8
    task = TextTask(source=str(path), eval_bytes=10)
    assert len(task.held_out_text()) == 10
    assert isinstance(task._text, FileBytes)
    assert task._bounds("train") == (0, 90_000_000)
    assert task._bounds("valid") == (90_000_000, 95_000_000)
    assert task._bounds("test") == (95_000_000, 100_000_000)


def test_a_zip_of_one_member_is_text_too(tmp_path):
    plain = write_text(tmp_path)
    with zipfile.ZipFile(tmp_path / "text.zip", "w") as archive:
        archive.write(plain, "text")
    packed = TextTask(source=str(tmp_path / "text.zip"))
    assert packed.held_out_text() == TextTask(source=str(plain)).held_out_text()


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("dickens", (9_173_201, 509_622, 509_623)), ("tinyshakespeare", (1_003_854, 111_540, 0))],
)
def test_named_texts_have_their_published_splits(name, sizes):
    if locate(DATA_SETS[name].files[0]) is None:
        pytest.skip(f"{name} is not on disk; `polewise data` says where it belongs")
    task = TextTask(source=name)
    bounds = [task._bounds(part) for part in ("train", "valid", "test")]
    assert tuple(last - first for first, last in bounds) == sizes


def test_a_text_without_a_test_part_is_not_asked_for_it():
    assert on_test_part(TextTask(source="tinyshakespeare")) is None
    assert on_test_part(TextTask()) == TextTask(part="test")
    assert on_test_part(TextTask(part="test")) is None


def test_a_named_text_of_another_size_is_not_taken_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("POLEWISE_DATA", str(tmp_path))
    for file in DATA_SETS["dickens"].files:
        path = tmp_path / file.paths[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"It was the best of times" * 100)
    with pytest.raises(ValueError, match=r"dickens must have 10,192,446 bytes; .* has 2,400\."):
        TextTask(source="dickens").prepare()


def test_an_absent_data_set_is_named_with_its_place(tmp_path, monkeypatch):
    monkeypatch.setenv("POLEWISE_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"place it at .*dickens/dickens "):
        TextTask(source="dickens").prepare()


def test_unusable_files_are_explained(tmp_path):
    empty, short, broken = (tmp_path / name for name in ("empty", "short", "broken.zip"))
    empty.write_bytes(b"")
    short.write_bytes(b"abc")
    broken.write_bytes(b"no archive")
    for source, message in (
        (empty, "is empty"),
        (short, "length must be less than the training part"),
        (tmp_path, "is a directory"),
        (tmp_path / "nothing", "there is no file"),
        (broken, "source must be readable"),
    ):
        with pytest.raises(ValueError, match=message):
            TextTask(source=str(source)).prepare()


def test_tiny_shakespeare_has_no_test_part():
    with pytest.raises(ValueError, match="no test part"):
        TextTask(source="tinyshakespeare", part="test")


def test_the_loss_is_the_mean_over_labelled_bytes_only():
    task = TextTask(length=4)
    logits, labels = torch.randn(2, 4, 256), torch.randint(0, 256, (2, 4))
    labels[0, 2:] = -100
    wanted = nn.functional.cross_entropy(logits[labels >= 0], labels[labels >= 0])
    torch.testing.assert_close(task.loss(logits, {"labels": labels}), wanted)

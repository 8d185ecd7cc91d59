"""Facts about images as sequences."""

import gzip
import itertools
import struct

import numpy as np
import pytest
import torch

from polewise.tasks import ImagesTask
from polewise.tasks.images import PERMUTATION_SEED


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """A folder with idx files of MNIST's shape; image i is filled with i % 256, labelled i % 10."""
    for kind, num in (("train", 55_020), ("t10k", 30)):
        values = np.arange(num)
        pixels = np.repeat((values % 256).astype(np.uint8), 784)
        write_idx(tmp_path / f"mnist/{kind}-images-idx3-ubyte.gz", pixels, (num, 28, 28))
        labels = (values % 10).astype(np.uint8)
        write_idx(tmp_path / f"mnist/{kind}-labels-idx1-ubyte.gz", labels, (num,))
    monkeypatch.setenv("POLEWISE_DATA", str(tmp_path))
    return tmp_path


def write_idx(path, values, shape):
    path.parent.mkdir(exist_ok=True)
    header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    path.write_bytes(gzip.compress(header + values.tobytes(), 1))


def test_mnist_holds_the_last_training_images_out_and_tests_on_the_test_files(mnist):
    for part, num, first in (("valid", 20, 55_000), ("test", 30, 0)):
        batches = list(ImagesTask(part=part, batch_size=8).eval_batches())
        labels = torch.cat([batch["labels"] for batch in batches])
        assert labels.tolist() == [(first + i) % 10 for i in range(num)]
        pixels = torch.cat([batch["inputs"] for batch in batches])
        trained_on = np.arange(55_000) % 256
        expected = (np.arange(first, first + num) % 256 - trained_on.mean()) / trained_on.std()
        expected = torch.tensor(expected).float()[:, None, None].expand_as(pixels)
        torch.testing.assert_close(pixels, expected, rtol=1e-4, atol=1e-4)
        assert batches[0]["inputs"].shape == (8, 784, 1)


def test_a_subset_is_the_first_images(mnist):
    task = ImagesTask(num_train=12, batch_size=12)
    (batch,) = itertools.islice(task.train_batches(0), 1)
    assert sorted(batch["labels"].tolist()) == sorted(i % 10 for i in range(12))


def test_absent_mnist_names_the_place_and_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("POLEWISE_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"mnist/train-images.*--source digits"):
        ImagesTask().prepare()


def test_a_broken_idx_file_is_explained(mnist):
    path = mnist / "mnist/train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="source must be a complete idx file"):
        ImagesTask().prepare()


def test_digits_have_length_64_and_standard_scale():
    task = ImagesTask(source="digits", batch_size=1397)
    (batch,) = itertools.islice(task.train_batches(0), 1)
    assert batch["inputs"].shape == (1397, task.spec.length, 1)
    assert batch["inputs"].mean().item() == pytest.approx(0, abs=1e-4)
    assert batch["inputs"].std().item() == pytest.approx(1, abs=1e-3)


def test_the_permutation_is_one_published_permutation_for_all_images():
    plain = next(iter(ImagesTask(source="digits").eval_batches()))["inputs"]
    permuted = next(iter(ImagesTask(source="digits", permuted=True).eval_batches()))["inputs"]
    order = np.random.RandomState(PERMUTATION_SEED).permutation(64)
    assert torch.equal(permuted, plain[:, order])
    assert not torch.equal(permuted, plain)


def test_training_resumes_at_any_step_and_shows_every_image_once_an_epoch():
    task = ImagesTask(source="digits", num_train=10, batch_size=4)
    steps = list(itertools.islice(task.train_batches(2), 5))
    again = next(task.train_batches(2, first_step=3))
    assert torch.equal(again["inputs"], steps[3]["inputs"])
    epoch = torch.cat([batch["inputs"] for batch in steps])[:10]
    assert len({row.numpy().tobytes() for row in epoch}) == 10


def test_more_images_than_there_are_is_refused():
    with pytest.raises(ValueError, match="num_train must be at most 1397 for digits; got 1398"):
        ImagesTask(source="digits", num_train=1398).prepare()


def test_a_mistyped_source_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'mnist'"):
        ImagesTask(source="minst")

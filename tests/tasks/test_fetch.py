"""Facts about downloading data sets."""

import bz2
import gzip
import hashlib
import io
import zipfile
from dataclasses import replace

import pytest

from polewise.tasks import data_sets
from polewise.tasks.data_sets import DataFile, DataSet
from polewise.tasks.fetch import fetch_data_set, unpack

CONTENT = b"a text that compresses " * 50


def zipped(content):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("text", content)
    return packed.getvalue()


def test_what_lies_here_is_what_the_table_of_data_sets_says():
    files = [file for each in data_sets.DATA_SETS.values() for file in each.files]
    found = [(file, path) for file in files if (path := data_sets.locate(file))]
    for file, path in found:
        content = unpack(path.read_bytes())
        assert (len(content), hashlib.md5(content).hexdigest()) == (file.num_bytes, file.md5), path
    assert len({file.md5 for file in files}) == len(files)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A data set `sample` whose address answers with `served[0]`."""
    answers = [zipped(CONTENT)]
    file = DataFile(
        paths=("sample/sample",),
        num_bytes=len(CONTENT),
        md5=hashlib.md5(CONTENT).hexdigest(),
        url="http://example.org/sample.zip",
    )
    monkeypatch.setitem(data_sets.DATA_SETS, "sample", DataSet(what="a sample", files=(file,)))
    monkeypatch.setenv("POLEWISE_DATA", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO(answers[0]))
    return answers


def test_what_is_fetched_is_unpacked_checked_and_then_found(served, tmp_path):
    (path,) = fetch_data_set("sample", say=lambda _: None)
    assert path == tmp_path / "sample/sample"
    assert path.read_bytes() == CONTENT
    assert data_sets.find("sample") == [path]


def test_a_file_that_is_read_packed_is_kept_packed(served, tmp_path, monkeypatch):
    (plain,) = data_sets.DATA_SETS["sample"].files
    file = replace(plain, paths=("sample/sample.gz",))
    monkeypatch.setitem(data_sets.DATA_SETS, "sample", DataSet(what="a sample", files=(file,)))
    served[0] = gzip.compress(CONTENT)
    (path,) = fetch_data_set("sample", say=lambda _: None)
    assert path == tmp_path / "sample/sample.gz"
    assert gzip.decompress(path.read_bytes()) == CONTENT
    assert data_sets.find("sample") == [path]


def test_what_is_there_is_not_fetched_again(served):
    fetch_data_set("sample", say=lambda _: None)
    served[0] = b"something else"
    (path,) = fetch_data_set("sample", say=lambda _: None)
    assert path.read_bytes() == CONTENT


def test_content_that_is_not_the_original_is_refused_and_not_kept(served, tmp_path):
    served[0] = zipped(CONTENT[:-1] + b"!")
    with pytest.raises(ValueError, match="nothing was kept"):
        fetch_data_set("sample", say=lambda _: None)
    assert not list(tmp_path.rglob("sample*"))


@pytest.mark.parametrize(
    "pack", [gzip.compress, bz2.compress, zipped, bytes], ids=["gzip", "bzip2", "zip", "plain"]
)
def test_archives_are_unpacked_by_what_they_are(pack):
    assert unpack(pack(CONTENT)) == CONTENT


def test_what_has_no_address_is_refused_with_its_origin(monkeypatch, tmp_path):
    monkeypatch.setenv("POLEWISE_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"spoken_digits cannot: it comes from github\.com/Jakobo"):
        fetch_data_set("spoken_digits", say=lambda _: None)

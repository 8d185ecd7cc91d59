"""The guides' Python runs as it stands: each page from top to bottom, in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest

from polewise import MIXERS
from polewise.tasks import TASKS

GUIDES = sorted((Path(__file__).parents[1] / "docs" / "guide").glob("*.md"))


def python_blocks(text):
    """Every block fenced as python: the number of the line before its first, and its code."""
    start, blocks = None, []
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if start is None and line == "```python":
            start = number + 1
        elif start is not None and line == "```":
            blocks.append((start, "\n".join(lines[start:number])))
            start = None
    return blocks


def run_guide(path):
    """Run the blocks in one namespace; an error names the file and the line."""
    namespace = {"__name__": path.stem}
    for start, code in python_blocks(path.read_text(encoding="utf-8")):
        try:
            # As a reader runs it: without the `__future__` of this file.
            exec(compile("\n" * start + code, str(path), "exec", dont_inherit=True), namespace)
        except SyntaxError as error:
            raise AssertionError(f"{path}:{error.lineno}: {error!r}") from error
        except Exception as error:
            trace, line = error.__traceback__, start
            while trace is not None:
                if trace.tb_frame.f_code.co_filename == str(path):
                    line = trace.tb_lineno
                trace = trace.tb_next
            raise AssertionError(f"{path}:{line}: {error!r}") from error


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_the_code_of_a_guide_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert python_blocks(path.read_text(encoding="utf-8"))
    with mock.patch.dict(MIXERS), mock.patch.dict(TASKS):  # a guide may add one
        run_guide(path)


def test_there_is_a_guide_to_streaming():
    assert "streaming" in [path.stem for path in GUIDES]


@pytest.mark.parametrize("wrong", ["assert total == 4", "total +", "undefined"])
def test_an_error_names_the_file_and_the_line(wrong, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n```python\ntotal = 3\n```\n\nThen\n\n```python\n\n{wrong}\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md:11: "):
        run_guide(page)

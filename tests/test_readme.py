"""The README's examples run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"## ([^\n]+)\n\n```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_an_example_runs(title, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, f"README: {title}", "exec"), {})


def test_there_are_examples_of_a_layer_a_model_and_a_filter():
    assert [title for title, _ in EXAMPLES] == ["A layer", "A model", "A filter"]

"""What users import."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import polewise


@pytest.mark.parametrize("name", polewise.__all__)
def test_every_listed_name_exists_and_is_documented(name):
    value = getattr(polewise, name)
    assert value is not None
    if callable(value):
        assert value.__doc__


def test_the_version_is_the_same_wherever_it_stands():
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    cited = re.search(r"^version: (.+)$", (root / "CITATION.cff").read_text(encoding="utf-8"), re.M)
    assert [project["version"], cited[1]] == [polewise.__version__] * 2


def test_importing_the_library_does_not_import_what_it_may_not_need():
    late = ["transformers", "numba", "matplotlib", "accelerate", "scipy"]
    code = f"import sys, polewise; print([name for name in {late} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_shapes_in_signatures_hold(tmp_path):
    """jaxtyping's annotations, checked by beartype in a process of their own: under that hook
    compiled models and our own error messages do not work."""
    code = """
from jaxtyping import install_import_hook
checked = [f"polewise.{name}" for name in ("ops", "filters", "layers", "mixers", "models.pooling")]
with install_import_hook(checked, "beartype.beartype"):
    import polewise
import torch
for name, config in polewise.MIXERS.items():
    mixer = config(dim=64).build()
    y, state = mixer(torch.randn(2, 70, 64))
    y, state = mixer(torch.randn(2, 3, 64), state, torch.tensor([3, 1]))
attention = polewise.AttentionConfig(dim=64, positions=80).build()
attention(torch.randn(2, 5, 64), None, torch.tensor([3, 1]))
focus = polewise.FocusConfig(dim=64).build()
focus.to_output = torch.nn.Sequential(focus.to_output)
focus(torch.randn(2, 5, 64))
from polewise.models.pooling import pool
pool(torch.randn(2, 5, 64), torch.ones(2, 5), "last")
a = torch.tensor([-0.5, 0.3])
polewise.filters.direct_form_frequency_response(a, torch.linspace(0, 3, 5))
polewise.filters.coefficients_to_poles(a)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]

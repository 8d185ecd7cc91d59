"""What users import."""

from __future__ import annotations

import subprocess
import sys

import pytest

import polewise


@pytest.mark.parametrize("name", polewise.__all__)
def test_every_listed_name_exists_and_is_documented(name):
    value = getattr(polewise, name)
    assert value is not None
    if callable(value):
        assert value.__doc__


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
checked = ["polewise.ops", "polewise.layers", "polewise.mixers"]
with install_import_hook(checked, "beartype.beartype"):
    import polewise
import torch
for name, config in polewise.MIXERS.items():
    mixer = config(dim=64).build()
    y, state = mixer(torch.randn(2, 70, 64))
    y, state = mixer(torch.randn(2, 3, 64), state, torch.tensor([3, 1]))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]

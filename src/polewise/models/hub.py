"""A folder that loads where Polewise is not installed: weights, tokenizer and the code itself.

The code is the package's own source, one flat file per module, with imports made relative: that
is the form in which transformers copies and runs code from a model folder.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from transformers import PreTrainedModel

from polewise.models.tokenizer import byte_tokenizer

_PACKAGE = "polewise"
_ENTRY = f"{_PACKAGE}.models.huggingface"
_ENTRY_FILE = "modeling_polewise"
_AUTO_CLASSES = {
    "PolewiseModel": "AutoModel",
    "PolewiseForCausalLM": "AutoModelForCausalLM",
    "PolewiseForSequenceClassification": "AutoModelForSequenceClassification",
    "PolewiseForForecasting": "AutoModelForTimeSeriesPrediction",
}

_CARD = """\
---
library_name: transformers
tags: [polewise, iir-filters, streaming]
---

# A Polewise model

Sequence mixer `{mixer}`, {parameters:,} parameters.

```bash
pip install "torch>=2.11" "transformers>=5.24,<6" safetensors numpy numba jaxtyping
```

```python
from transformers import {auto_class}

model = {auto_class}.from_pretrained("path/of/this/folder", trust_remote_code=True)
```

The Python files beside this one are the model's code, which a tokenizer's `from_pretrained` wants
`trust_remote_code=True` for as well. Where Polewise is installed,
`import polewise.models.huggingface` lets the same folder load without `trust_remote_code`.
"""


def export_for_hub(model: PreTrainedModel, folder: str | Path) -> None:
    """Write `model` so that `from_pretrained(folder, trust_remote_code=True)` needs no Polewise.

    A byte model (`vocab_size=256`) gets its tokenizer. Files that are there are replaced.

    Raises:
        ValueError: not one of our classes of models or mixers, or `folder` is a file.
    """
    folder = Path(folder)
    name = type(model).__name__
    if name not in _AUTO_CLASSES:
        raise ValueError(f"model must be one of {', '.join(_AUTO_CLASSES)}; got {name}.")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder must not be a file; got {folder}.")
    sources = flat_sources()
    home = type(model.config.backbone().mixer).__module__
    if home.startswith("transformers_modules."):  # loaded from such a folder
        home = home.rpartition(".")[2]
    if _flat_name(home) not in sources:
        raise ValueError(
            f"model must have a mixer of Polewise, whose code goes into the folder; "
            f"{model.config.mixer!r} is one of {home}."
        )
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {
        "AutoConfig": f"{_ENTRY_FILE}.PolewiseConfig",
        **{auto: f"{_ENTRY_FILE}.{ours}" for ours, auto in _AUTO_CLASSES.items()},
    }
    (folder / "config.json").write_text(
        json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    if model.config.vocab_size == 256 and not model.config.num_input_features:
        byte_tokenizer().save_pretrained(folder)
    for file, source in sources.items():
        (folder / f"{file}.py").write_text(source, encoding="utf-8")
    card = _CARD.format(
        mixer=model.config.mixer,
        parameters=model.num_parameters(),
        auto_class=_AUTO_CLASSES[name],
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def flat_sources() -> dict[str, str]:
    """The source of every module that the models need, by the name of its flat file."""
    at_once = _reached(lambda tree: tree.body)
    required = {package for tree in at_once.values() for package in _packages(tree.body)}
    sources = {
        _flat_name(module): _rewritten(module, _read(module), required)
        for module in _reached(ast.walk)
    }
    # Saving a loaded model copies the file that defines its class, with what that imports. Make
    # that the entry file, which registers the classes with Trainer and pipelines.
    sources[_ENTRY_FILE] += (
        f"\nfor _each in (PolewiseConfig, {', '.join(_AUTO_CLASSES)}):\n"
        "    _each.__module__ = __name__\n"
    )
    return sources


def _reached(nodes: Callable[[ast.Module], Iterable[ast.AST]]) -> dict[str, ast.Module]:
    """The modules that the models lead to, following the imports among these nodes of each."""
    trees: dict[str, ast.Module] = {}
    waiting = [_ENTRY]
    while waiting:
        module = waiting.pop()
        if module not in trees:
            trees[module] = ast.parse(_read(module))
            waiting += [node.module for node in _own_imports(nodes(trees[module])) if node.module]
    return trees


def _packages(nodes: Iterable[ast.AST]) -> set[str]:
    """The packages that the imports among these nodes name."""
    names: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [imported.name for imported in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return {name.split(".")[0] for name in names}


def _read(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None  # an import that works
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


def _flat_name(module: str) -> str:
    """`polewise.ops.direct_form` as `ops_direct_form`."""
    if module == _ENTRY:
        return _ENTRY_FILE
    return module.removeprefix(f"{_PACKAGE}.").replace(".", "_")


def _own_imports(nodes: Iterable[ast.AST]) -> list[ast.ImportFrom]:
    return [
        node
        for node in nodes
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == _PACKAGE
    ]


def _rewritten(module: str, source: str, required: set[str]) -> str:
    """Relative imports, operator names of its own, and no registration with transformers.

    Transformers may load the same code under several names, beside an installed Polewise: each
    copy registers its operators under its own module's name. Packages that are not `required` are
    imported inside `try`: loading from the Hub asks for every other one, a GPU's compiler included.
    """
    tree = ast.parse(source)
    lines = source.splitlines(keepends=True)
    changes: list[tuple[int, str, str]] = []
    for imported in _own_imports(ast.walk(tree)):
        assert imported.module is not None
        if _imports_a_module(imported):
            raise ValueError(
                f"{module} must import names from modules, not modules from packages, to be "
                f"exported; got line {imported.lineno}."
            )
        flat = _flat_name(imported.module)
        changes.append((imported.lineno, f"from {imported.module} ", f"from .{flat} "))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and str(node.value).startswith(f"{_PACKAGE}::"):
            name = str(node.value).removeprefix(f"{_PACKAGE}::")
            own = f'"{_PACKAGE}_" + __name__.replace(".", "_") + "::{name}"'
            changes.append((node.lineno, f'"{_PACKAGE}::{name}"', own))
    for number, old, new in changes:
        assert old in lines[number - 1], f"{module}, line {number}: {old!r} not found"
        lines[number - 1] = lines[number - 1].replace(old, new, 1)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and (
            _packages([node]) - required - {_PACKAGE}
        ):
            indent, last = " " * node.col_offset, node.end_lineno or node.lineno
            lines[node.lineno - 1] = f"{indent}try:\n    {lines[node.lineno - 1]}"
            lines[last - 1] += f"{indent}except ImportError:\n{indent}    raise\n"
    for statement in tree.body:
        if _registers(statement):
            for row in range(statement.lineno - 1, statement.end_lineno or statement.lineno):
                lines[row] = ""
    return "".join(lines)


def _imports_a_module(node: ast.ImportFrom) -> bool:
    """`from package import module`, which a flat folder cannot say."""
    package = import_module(node.module or "")
    return any(isinstance(getattr(package, name.name, None), ModuleType) for name in node.names)


def _registers(node: ast.stmt) -> bool:
    """`AutoConfig.register(...)` and the like."""
    call = node.value if isinstance(node, ast.Expr) else None
    return (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "register"
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id.startswith("Auto")
    )

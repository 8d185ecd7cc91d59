"""Words to a call, and mistakes to one line each. The options come from signatures, by tyro."""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg

from polewise.did_you_mean import did_you_mean

Command = Callable[..., int]

RunPath = Annotated[Positional[Path], arg(metavar="RUN")]
"""The run folder that a command takes."""


def choose_command(words: list[str], commands: Mapping[str, Command]) -> tuple[str, list[str]]:
    """Return the command's name and its arguments. `train ... --resume RUN` is `resume RUN`.

    Raises:
        ValueError: no command of that name; the nearest is suggested.
    """
    if words[0] == "train":
        words = [part for word in words for part in _apart(word, "--resume")]
        if "--resume" in words:
            at = words.index("--resume")
            before = [word for word in words[1:at] if f"train {word}" not in commands]
            return "resume", [*before, *words[at + 1 :]]
    for taken in (2, 1):
        name = " ".join(words[:taken])
        if name in commands:
            return name, words[taken:]
    if words[0] == "train":
        tasks = [name.split()[1] for name in commands if name.startswith("train ")]
        got = f"got {words[1]!r}.{did_you_mean(words[1], tasks)}" if words[1:] else "got nothing."
        raise ValueError(f"train must be followed by a task, {', '.join(tasks)}; {got}")
    known = list(dict.fromkeys(name.split()[0] for name in commands))
    raise ValueError(
        f"command must be one of {', '.join(known)}; got {words[0]!r}."
        f"{did_you_mean(words[0], known)}"
    )


def _apart(word: str, option: str) -> list[str]:
    """Option and value, where they were given as one word."""
    return word.split("=", 1) if word.startswith(f"{option}=") else [word]


def parse(name: str, command: Command, words: list[str]) -> Callable[[], int] | None:
    """Return the call that the words ask for, or None when they asked for help.

    Raises:
        ValueError: the words are wrong.
    """
    if name.startswith("train"):
        words = _with_one_budget(words)

    @functools.wraps(command)
    def bind(*positional: Any, **named: Any) -> Callable[[], int]:
        return lambda: command(*positional, **named)

    panel = io.StringIO()
    try:
        with contextlib.redirect_stderr(panel):
            return tyro.cli(bind, prog=f"polewise {name}", args=words)
    except SystemExit as stop:
        if not stop.code:
            return None
        raise ValueError(_one_line(panel.getvalue(), name)) from None


def _with_one_budget(words: list[str]) -> list[str]:
    """Let a budget in seconds replace a recipe's budget in steps, and the other way round."""
    given = {word.split("=")[0].replace("_", "-") for word in words}
    if "--max-seconds" in given and "--max-steps" not in given:
        return [*words, "--max-steps", "None"]
    if "--max-steps" in given and "--max-seconds" not in given:
        return [*words, "--max-seconds", "None"]
    return words


def _one_line(panel: str, command: str) -> str:
    """Fold the panel that tyro prints into one line: what is wrong, and the nearest option."""
    panel = re.sub(r"\x1b\[[0-9;]*m", "", panel)  # colours, where stdout is a terminal
    lines = [line.strip(" │") for line in panel.splitlines()]
    # The first line is the title; where the terminal has no box characters, a rule follows it.
    body = [line for line in lines[1:] if line and not line.startswith("╰")]
    body = body[1:] if body and _is_rule(body[0]) else body
    rules = [at for at, line in enumerate(body) if _is_rule(line)] + [len(body)]
    what = " ".join(body[: rules[0]])
    if what.startswith("Missing from") and len(body) > 1:
        return f"{body[1]} is missing. Try: polewise {command} --help"
    what = re.sub(r"^Error parsing (task|model|training|options): ", "", what)
    what = re.sub(
        r"^Error parsing (--\S+): no type matching (\S+) could be instantiated from \['(.*?)'\].*",
        lambda found: f"{found[1]} must be {_kinds(found[2])}; got {found[3]!r}.",
        what,
    )
    what = re.sub(
        r"^Error parsing (--\S+): invalid literal for int\(\) with base 10: (.*)",
        r"\1 must be an integer; got \2.",
        what,
    )
    if what.startswith("Unrecognized options: "):
        what = what.replace("Unrecognized options: ", "unknown option ").replace(", ", " ")
    near = re.findall(r"^(--[a-z][\w-]*)", "\n".join(body[rules[0] :]), flags=re.MULTILINE)
    unknown = re.findall(r"--[^\s=]+", what)
    near = [option for option in near if option not in unknown]
    if near and what.startswith("unknown option"):
        nearest = difflib.get_close_matches(unknown[0], near, n=1, cutoff=0)[0]
        return f"{what}. Did you mean {nearest}?"
    return f"{what}" if what.endswith(".") else f"{what}. Try: polewise {command} --help"


def _kinds(types: str) -> str:
    """`{None}|INT` in words."""
    words = {"{None}": "None", "INT": "an integer", "FLOAT": "a number"}
    return " or ".join(words.get(each, each) for each in types.split("|"))


def _is_rule(line: str) -> bool:
    return len(line) > 3 and not line.strip("─-")

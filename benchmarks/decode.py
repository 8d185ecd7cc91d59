"""Decoding one token at a time: how fast beside a key-value cache, and what stays constant.

Three parts, all at batch 1, in float32, with random weights and random tokens:

    contexts   Tokens per second after contexts of 1K to 64K, of a Focus language model, of the
               same with its single step compiled, and of a GPT-2-shaped one with as many
               parameters (its table of positions not counted) and transformers' DynamicCache.
               Each both by its own forward pass and by transformers' `generate`. The caches are
               filled by reading the context.
    positions  One stream of 1M tokens, read in segments, with single steps at 1K, 10K, 100K and
               1M: time per token, size of the state, memory of the process, and how far the
               logits are from those of the same model in float64. Errors that add up would show.
    equality   100K single steps against one parallel pass: logits and state.

What is compared in time runs in one process, one after another, in an order that rotates from
round to round; figures are medians over rounds, and ratios are taken inside a round. Nothing is
timed before `generate` and the forward pass have chosen the same tokens.

    python benchmarks/decode.py                    # the full size, half an hour or so
    python benchmarks/decode.py --parts contexts --contexts 1024 4096
    python benchmarks/decode.py --small            # a smoke test: seconds, no file
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from polewise import PolewiseConfig, PolewiseForCausalLM, states
from polewise.models.cache import PolewiseCache
from polewise.training.environment import describe_environment
from shared import (
    brief,
    in_rounds,
    machine,
    now,
    progress,
    ratios,
    results_file,
    seconds,
    spread,
    write,
)

VOCABULARY = 256
SEGMENT = 512
"""Tokens that are read at once where nothing is timed."""
SMALL = {
    "width": 32, "layers": 2, "contexts": [64, 128], "marks": [64, 128, 256],
    "equality_length": 256, "tokens": 8, "rounds": 2,
}  # fmt: skip


def make_focus(width: int, layers: int, seed: int) -> PolewiseForCausalLM:
    torch.manual_seed(seed)
    config = PolewiseConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        vocab_size=VOCABULARY,
    )
    return PolewiseForCausalLM(config).eval()


def make_gpt2(width: int, layers: int, positions: int, parameters: int) -> GPT2LMHeadModel:
    """As many parameters as near as its feed-forward allows."""

    def config(inner: int) -> GPT2Config:
        return GPT2Config(
            vocab_size=VOCABULARY, n_positions=positions, n_embd=width, n_layer=layers,
            n_head=max(width // 64, 1), n_inner=inner, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip

    with torch.device("meta"):
        one, two = (count_parameters(GPT2LMHeadModel(config(inner))) for inner in (1, 2))
    return GPT2LMHeadModel(config(1 + round((parameters - one) / (two - one)))).eval()


def count_parameters(model: torch.nn.Module) -> int:
    """All but a table of positions, which is as long as the longest context."""
    return sum(
        weights.numel()
        for name, weights in model.named_parameters()
        if not name.endswith("wpe.weight")
    )


class FocusDecoder:
    """The Focus model and its state after a context."""

    def __init__(self, model: PolewiseForCausalLM) -> None:
        self.model, self.state = model, model.initial_state(1)

    def read(self, ids: Tensor) -> None:
        _, self.state = self.model.step(ids, self.state)

    def forward(self, ids: Tensor, tokens: int) -> list[int]:
        """Greedy, by the forward pass. The state stays as it is: no step changes one."""
        chosen, state, token = [], self.state, ids[:, -1:]
        for _ in range(tokens):
            logits, state = self.model.step(token, state)
            token = logits[:, -1].argmax(-1, keepdim=True)
            chosen.append(int(token))
        return chosen

    def generate(self, ids: Tensor, tokens: int) -> list[int]:
        """Greedy, by transformers."""
        cache = PolewiseCache(self.state, ids.shape[1] - 1)
        chosen = generate(self.model, cache, ids, tokens)
        if cache.get_seq_length() != ids.shape[1] + tokens - 1:
            raise SystemExit("generate must read each token once; it has read the context again.")
        return chosen

    def num_bytes(self) -> int:
        return states.num_bytes(self.state)


class GPT2Decoder:
    """The GPT-2-shaped model and its keys and values after a context."""

    def __init__(self, model: GPT2LMHeadModel) -> None:
        self.model, self.cache = model, DynamicCache()

    def read(self, ids: Tensor) -> None:
        self.model(ids, cache=self.cache, use_cache=True, logits_to_keep=1)

    def forward(self, ids: Tensor, tokens: int) -> list[int]:
        """Greedy, by the forward pass."""
        chosen, token = [], ids[:, -1:]
        for _ in range(tokens):
            logits = self.model(token, cache=self.cache, use_cache=True).logits
            token = logits[:, -1].argmax(-1, keepdim=True)
            chosen.append(int(token))
        self.cache.crop(-tokens)
        return chosen

    def generate(self, ids: Tensor, tokens: int) -> list[int]:
        """Greedy, by transformers."""
        chosen = generate(self.model, self.cache, ids, tokens)
        self.cache.crop(-tokens)
        return chosen

    def num_bytes(self) -> int:
        return sum(
            part.numel() * part.element_size()
            for layer in self.cache.layers
            for part in (layer.keys, layer.values)
        )


def generate(model: Any, cache: Any, ids: Tensor, tokens: int) -> list[int]:
    """Go on after all of `ids`, of which the cache has read all but the last."""
    written = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        cache=cache,
        max_new_tokens=tokens,
        do_sample=False,
    )
    return written[0, ids.shape[1] :].tolist()


def measure_contexts(focus: PolewiseForCausalLM, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of all systems after each context."""
    contexts, tokens = sorted(options.contexts), options.tokens
    gpt2 = make_gpt2(
        options.width, options.layers, contexts[-1] + tokens + 1, count_parameters(focus)
    )
    compiled = copy.deepcopy(focus)
    compiled.compile_step(**({"backend": "eager"} if options.small else {}))
    decoders = {
        "Focus": FocusDecoder(focus),
        "Focus, compiled": FocusDecoder(compiled),
        "GPT-2": GPT2Decoder(gpt2),
    }
    ids = random_ids(contexts[-1] + 1, options.seed)
    rows, done = [], 0
    for context in contexts:
        prompt = ids[:, : context + 1]
        row: dict[str, Any] = {"context": context, "read_seconds": {}, "cache_bytes": {}}
        systems: dict[str, Callable[[], list[int]]] = {}
        for name, decoder in decoders.items():
            row["read_seconds"][name] = read(decoder.read, ids[:, done:context], f"{name} reads")
            row["cache_bytes"][name] = decoder.num_bytes()
            for way in ("forward", "generate"):
                systems[f"{name}, {way}"] = partial(getattr(decoder, way), prompt, tokens)
            if decoder.forward(prompt, tokens) != decoder.generate(prompt, tokens):
                raise SystemExit(
                    f"{name}: generate must choose the tokens that the forward pass chooses, "
                    f"context {context}; nothing is timed."
                )
        times = measure(systems, options.rounds, f"context {context}")
        row["seconds"] = times
        row["tokens_per_second"] = {
            name: spread([tokens / each for each in taken]) for name, taken in times.items()
        }
        row["over_gpt2"] = {
            f"{name}, {way}": spread(ratios(times[f"GPT-2, {way}"], times[f"{name}, {way}"]))
            for name in ("Focus", "Focus, compiled")
            for way in ("forward", "generate")
        }
        rows.append(row)
        done = context
    return {
        "parameters": {"Focus": count_parameters(focus), "GPT-2": count_parameters(gpt2)},
        "gpt2": {"inner": gpt2.config.n_inner, "heads": gpt2.config.n_head},
        "rows": rows,
    }


def measure_positions(focus: PolewiseForCausalLM, options: argparse.Namespace) -> dict[str, Any]:
    """One long stream: what a token costs, what is kept and how exact it is, early and late."""
    marks, tokens = sorted(options.marks), options.tokens
    exact = copy.deepcopy(focus).double()
    ids = random_ids(marks[-1] + tokens, options.seed)
    reader, judge = FocusDecoder(focus), FocusDecoder(exact)
    for decoder in (FocusDecoder(focus), FocusDecoder(exact)):  # compiles, and fills the pools
        decoder.read(random_ids(SEGMENT, options.seed))
    process, rows, snapshots, done = psutil.Process(), [], {}, 0
    for mark in marks:
        took = read(reader.read, ids[:, done:mark], f"to {mark}")
        read(judge.read, ids[:, done:mark], f"to {mark} in float64")
        snapshots[mark] = reader.state
        window = ids[:, mark : mark + tokens]
        wanted, judge.state = exact.step(window, judge.state)
        logits = []
        for token in window.split(1, 1):
            one, reader.state = focus.step(token, reader.state)
            logits.append(one)
        rows.append(
            {
                "position": mark,
                "read_seconds": took,
                "state_bytes": reader.num_bytes(),
                "process_bytes": process.memory_info().rss,
                "difference_from_float64": difference(torch.cat(logits, 1), wanted),
                "largest_logit": float(wanted.abs().max()),
            }
        )
        done = mark + tokens

    def decode(mark: int) -> None:
        state = snapshots[mark]
        for token in ids[:, :tokens].split(1, 1):
            _, state = focus.step(token, state)

    systems = {str(mark): partial(decode, mark) for mark in marks}
    times = measure(systems, options.rounds, "single steps")
    for row in rows:
        taken = times[str(row["position"])]
        row["seconds"] = taken
        row["ms_per_token"] = spread([1000 * each / tokens for each in taken])
        row["over_first"] = spread(ratios(taken, times[str(marks[0])]))
    return {"rows": rows}


def measure_equality(focus: PolewiseForCausalLM, options: argparse.Namespace) -> dict[str, Any]:
    """Single steps against one pass over everything, by tenths of the sequence."""
    length = options.equality_length
    ids = random_ids(length, options.seed)
    parallel, end = focus.step(ids)
    tenth = -(-length // 10)
    differences, state = [0.0] * -(-length // tenth), None
    for t in range(length):
        logits, state = focus.step(ids[:, t : t + 1], state)
        found = difference(logits[:, 0], parallel[:, t])
        differences[t // tenth] = max(differences[t // tenth], found)
        if t % 500 == 0:
            progress(f"step {t} of {length}")
    progress("")
    pairs = zip(states.tensors(state), states.tensors(end), strict=True)
    return {
        "length": length,
        "largest_logit": float(parallel.abs().max()),
        "difference": max(differences),
        "difference_by_tenth": differences,
        "state_difference": max(
            difference(mine, theirs) / max(float(theirs.abs().max()), 1e-30)
            for mine, theirs in pairs
            if mine.is_floating_point()
        ),
    }


def random_ids(length: int, seed: int) -> Tensor:
    return torch.randint(VOCABULARY, (1, length), generator=torch.Generator().manual_seed(seed))


def read(call: Callable[[Tensor], None], ids: Tensor, what: str) -> float:
    """Read `ids` in segments; return the seconds."""
    began, done = time.perf_counter(), 0
    for segment in ids.split(SEGMENT, 1):
        call(segment)
        done += segment.shape[1]
        progress(f"{what}: {done} of {ids.shape[1]}")
    progress("")
    return time.perf_counter() - began


def measure(
    systems: dict[str, Callable[[], object]], rounds: int, what: str
) -> dict[str, list[float]]:
    """Seconds of each system in each round."""
    times: dict[str, list[float]] = {name: [] for name in systems}
    for _, name in in_rounds(list(systems), rounds, f"{what}: "):
        times[name].append(seconds(systems[name]))
    return times


def difference(left: Tensor, right: Tensor) -> float:
    return float((left.double() - right.double()).abs().max())


def show(report: dict[str, Any]) -> None:
    work, hardware = report["work"], report["hardware"]
    print(
        f"{hardware['cpu']}, {hardware['cores']} cores, {work['threads']} threads; batch 1, "
        f"float32, width {work['width']}, {work['layers']} layers, vocabulary {VOCABULARY}; "
        f"{work['rounds']} rounds of {work['tokens']} tokens; median (lowest to highest)"
    )
    if "contexts" in report:
        show_contexts(report["contexts"])
    if "positions" in report:
        show_positions(report["positions"]["rows"])
    if "equality" in report:
        found = report["equality"]
        print(
            f"\n{found['length']:,} single steps and one pass: logits differ by at most "
            f"{found['difference']:.1e} (largest logit {found['largest_logit']:.1f}), states by "
            f"{found['state_difference']:.1e} of their largest value. By tenths of the sequence: "
            + ", ".join(f"{value:.1e}" for value in found["difference_by_tenth"])
        )


def show_contexts(found: dict[str, Any]) -> None:
    counts = found["parameters"]
    names = list(found["rows"][0]["tokens_per_second"])
    print(
        f"\nTokens per second; Focus {counts['Focus']:,} parameters, "
        f"GPT-2 {counts['GPT-2']:,} without positions\n"
    )
    over = list(found["rows"][0]["over_gpt2"])
    heads = [*names, *(f"{name}, over GPT-2" for name in over)]
    print(f"| context | {' | '.join(heads)} | cache, bytes: Focus | GPT-2 |")
    print("|---" * (len(heads) + 3) + "|")
    for row in found["rows"]:
        rates = [brief(row["tokens_per_second"][name], ".0f") for name in names]
        rates += [brief(row["over_gpt2"][name], ".2f") for name in over]
        sizes = [f"{row['cache_bytes'][name]:,}" for name in ("Focus", "GPT-2")]
        print(f"| {row['context']:,} | {' | '.join(rates + sizes)} |")


def show_positions(rows: list[dict[str, Any]]) -> None:
    first = rows[0]["position"]
    print(
        f"\n| position | ms per token | over position {first:,} | state, bytes | process, MiB | "
        "logits differ from float64 by | largest logit |"
    )
    print("|---" * 7 + "|")
    for row in rows:
        print(
            f"| {row['position']:,} | {brief(row['ms_per_token'], '.2f')} | "
            f"{brief(row['over_first'], '.2f')} | {row['state_bytes']:,} | "
            f"{row['process_bytes'] / 2**20:.0f} | {row['difference_from_float64']:.1e} | "
            f"{row['largest_logit']:.1f} |"
        )


PARTS = {
    "positions": measure_positions,  # first, while the process has held nothing else
    "contexts": measure_contexts,
    "equality": measure_equality,
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="(default all)"
    )
    for name, default, text in (
        ("width", 256, "channels"),
        ("layers", 4, "blocks"),
        ("equality-length", 102_400, "single steps of the part `equality`"),
        ("tokens", 64, "tokens that are decoded at a time"),
        ("rounds", 9, "rounds, each with every system once"),
        ("threads", torch.get_num_threads(), "threads of all systems"),
        ("seed", 0, "of weights and tokens"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, help=f"{text} (default {default})"
        )
    for name, defaults, text in (
        ("contexts", [1024, 4096, 16_384, 65_536], "tokens in the caches, part `contexts`"),
        ("marks", [1024, 10_240, 102_400, 1_024_000], "positions, part `positions`"),
    ):
        shown = " ".join(map(str, defaults))
        parser.add_argument(
            f"--{name}", type=int, nargs="+", default=defaults, help=f"{text} (default {shown})"
        )
    parser.add_argument(
        "--small", action="store_true", help="a smoke test; written only with --output"
    )
    parser.add_argument(
        "--output", type=Path, help="JSON to write (default benchmarks/results/decode-DATE.json)"
    )
    if parser.parse_args(arguments).small:
        parser.set_defaults(**SMALL)
    options = parser.parse_args(arguments)
    counts = ("width", "layers", "equality_length", "tokens", "rounds", "threads")
    for name in (*counts, "contexts", "marks"):
        given = getattr(options, name)
        if min(given if isinstance(given, list) else [given]) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1; got {given}.")
    if any(late - early < options.tokens for early, late in pairwise(sorted(options.marks))):
        parser.error(f"--marks must be at least --tokens apart; got {options.marks}.")
    return options


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    work = {name: value for name, value in vars(options).items() if name != "output"}
    report: dict[str, Any] = {
        "date": now(),
        "hardware": machine(),
        "environment": describe_environment(),
        "work": work,
    }
    focus = make_focus(options.width, options.layers, options.seed)
    for name, part in PARTS.items():
        if name in options.parts:
            report[name] = part(focus, options)
    show(report)
    if options.output is not None or not options.small:
        output = results_file("decode", options.output)
        write(output, report)
        print(f"\nwritten to {output}")


if __name__ == "__main__":
    main()

"""Run a byte model over a pipe without end, in memory that does not grow.

Reads standard input in segments, carries the model's state from one to the next, and prints how
many bits each byte costs under the model so far. The cut into segments changes nothing: the
figures are those of one pass. Nothing is trained here. Without a model folder the model is small
and random and knows nothing, so that every byte costs about 8 bits or more.

    cat *.txt | python examples/byte_model_over_a_pipe.py
    cat *.txt | python examples/byte_model_over_a_pipe.py runs/demo-20260101-120000/text/model

`polewise stream RUN` does the same as a command; with `--state FILE` it also keeps its state in a
file.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import psutil
import torch

from polewise import PolewiseConfig, PolewiseForCausalLM, states
from polewise.models.byte_stream import byte_costs, start_of_stream


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model",
        nargs="?",
        type=Path,
        help="folder that save_pretrained wrote, such as RUN/model; left out: a random model",
    )
    parser.add_argument(
        "--segment-length", type=int, default=4096, help="bytes read at once (default 4096)"
    )
    parser.add_argument(
        "--every", type=int, default=100_000, help="bytes between lines (default 100000)"
    )
    options = parser.parse_args()
    for name in ("segment_length", "every"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1.")
    if options.model is not None and not (options.model / "config.json").is_file():
        parser.error(f"model must be a folder with a config.json; got {options.model}.")

    if options.model is None:
        torch.manual_seed(0)
        config = PolewiseConfig(hidden_size=32, num_hidden_layers=2, intermediate_size=64)
        model = PolewiseForCausalLM(config).eval()
    else:
        model = PolewiseForCausalLM.from_pretrained(options.model).eval()
    if sys.stdin.isatty():
        print("nothing is piped in, so the model reads this script; try: cat FILE | python ...")
        pipe = open(__file__, "rb")  # noqa: SIM115
    else:
        pipe = sys.stdin.buffer

    state, bits, num_bytes, due = start_of_stream(model), 0.0, 0, options.every
    process, began = psutil.Process(), time.monotonic()

    def report() -> None:
        rate = num_bytes / (time.monotonic() - began)
        print(
            f"{num_bytes:>12,} bytes  {bits / num_bytes:.4f} bits per byte  {rate:,.0f} bytes/s"
            f"  state {states.num_bytes(state):,} bytes"
            f"  process {process.memory_info().rss / 2**20:,.0f} MiB",
            flush=True,
        )

    while segment := pipe.read1(min(options.segment_length, due - num_bytes)):
        costs, state = byte_costs(model, segment, state)
        bits, num_bytes = bits + float(costs.sum()), num_bytes + len(segment)
        if num_bytes == due:
            report()
            due += options.every
    if not num_bytes:
        raise SystemExit("standard input must hold at least one byte; got none.")
    if num_bytes % options.every:
        report()


if __name__ == "__main__":
    main()

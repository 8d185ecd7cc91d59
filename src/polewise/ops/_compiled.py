"""How compiled loops run on the CPU.

A loop releases the interpreter lock and works on a range of *units*, one unit being a
block of neighbouring channels of one row, or one of its heads. A few plain threads share the units,
as many as `torch.get_num_threads()` says, so there is one number to set and no second OpenMP
runtime that would spin beside torch's own.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from torch import Tensor

CHANNEL_BLOCK = 1024
"""Most channels in a unit. Whole rows are read as one stream of memory: with blocks of 128 of 512
channels the filters took 1.8 to 3.2 times as long. Beyond 1024 the states leave the caches."""

_SMALL = 1 << 15
"""Below this many values a second thread costs more than it brings."""


class _Disjoint(CompilerBase):
    """Tells the compiler that no argument's memory overlaps another's, which it would otherwise
    ask before every loop, and with many arrays give up vectorising."""

    def define_pipelines(self):
        self.state.flags.noalias = True
        return [DefaultPassBuilder.define_nopython_pipeline(self.state)]


class _CodeFiles(IndexDataCacheFile):
    """Numba counts the files of a loop from 1, and writes the index, which names them, first: a
    process that is killed in between, or two at once, would leave code of another version or
    another type under that name. Here a name is a digest of what it stands for, and comes last.
    Names never come again, so what was compiled of a loop from other sources is deleted; where that
    is another process's it compiles once more."""

    def save(self, key: Any, data: Any) -> None:
        mark = repr((self._version, self._source_stamp, key)).encode()
        name = self._data_name(int(hashlib.sha256(mark).hexdigest()[:15], 16))
        self._save_data(name, data)
        sources = key[-1]
        kept = {key: name for key, name in self._load_index().items() if key[-1] == sources}
        kept[key] = name
        self._save_index(kept)
        of_this_loop = self._index_name.replace(".nbi", ".*.nbc")
        for path in Path(self._cache_path).glob(of_this_loop):
            if path.name not in kept.values():
                path.unlink(missing_ok=True)


class _MachineCode(FunctionCache):
    """Machine code on disk: a help, on which no call depends. What cannot be read, such as a file
    that was cut short, is compiled and written anew; what cannot be written, as on a full disk, is
    compiled once a process."""

    def __init__(self, loop: Callable[..., Any]) -> None:
        super().__init__(loop)
        self._cache_file = _CodeFiles(
            self._cache_path, self._impl.filename_base, self._impl.locator.get_source_stamp()
        )

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # there is no end of what damaged files raise
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):
            super().save_overload(sig, data)

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        # Loops contain each other across files, and a loop's own file is all that numba asks for.
        return (*super()._index_key(sig, codegen), _sources())


@cache
def _sources() -> str:
    """A digest of everything that is compiled."""
    files = sorted(Path(__file__).parent.glob("*_*.py"))
    return hashlib.sha256(b"".join(each.read_bytes() for each in files)).hexdigest()


def compiled(loop: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile at the first call; keep the machine code on disk where that is allowed.

    Multiplications and additions may fuse, which only makes them more exact. Nothing
    else of IEEE arithmetic is given up: NaN and infinity travel as they must.
    """
    options = {
        "nogil": True,
        "fastmath": {"contract"},
        "error_model": "numpy",
        "boundscheck": False,
        **options,
    }
    dispatcher = numba.njit(**options)(loop)
    with suppress(RuntimeError):  # no folder to keep it in
        dispatcher._cache = _MachineCode(loop)
    return dispatcher


def vectorised(loop: Callable[..., Any]) -> Callable[..., Any]:
    """`compiled`, for loops inside of loops: what is written overlaps nothing else, and sums may
    be taken in any order, several lanes at once."""
    return compiled(loop, fastmath={"contract", "reassoc"}, pipeline_class=_Disjoint)


def run_units(loop: Callable[..., None], batch: int, length: int, dim: int, *arguments) -> None:
    """Call `loop(*arguments, block, first, stop)` so that every unit is done exactly once."""
    threads = _threads(batch * length * dim)
    block = min(CHANNEL_BLOCK, max(dim, 1))
    units = batch * -(-dim // block)
    # Narrower blocks only where some threads would have less to do than others.
    while block > 16 and units % threads and units < 4 * threads:
        block //= 2
        units = batch * -(-dim // block)
    _share(loop, units, threads, *arguments, block)


def run_heads(loop: Callable[..., None], v: Tensor, *arguments) -> None:
    """The same for `loop(*arguments, first, stop)` where a unit is a head of a row of `v`,
    (batch, length, heads, value_dim)."""
    _share(loop, v.shape[0] * v.shape[2], _threads(v.numel()), *arguments)


def run_blocks(
    loop: Callable[..., None], batch: int, length: int, dim: int, size: int, *arguments
) -> None:
    """The same for `loop(*arguments, first, stop)` where a unit is `size` steps of a row."""
    _share(loop, batch * -(-length // size), _threads(batch * length * dim), *arguments)


def _threads(values: int) -> int:
    return 1 if values <= _SMALL else torch.get_num_threads()


def _share(loop: Callable[..., None], units: int, threads: int, *arguments) -> None:
    threads = min(threads, units)
    if threads <= 1:
        loop(*arguments, 0, units)
        return
    cuts = [units * i // threads for i in range(threads + 1)]
    pool, futures = _pool(threads - 1), []
    for first, stop in pairwise(cuts[1:]):
        try:
            futures.append(pool.submit(loop, *arguments, first, stop))
        except RuntimeError as error:
            if "shutdown" not in str(error):
                raise
            # The main thread has ended: whoever outlives it works alone.
            loop(*arguments, first, stop)
    loop(*arguments, cuts[0], cuts[1])
    for future in futures:
        future.result()


_pools: dict[int, ThreadPoolExecutor] = {}


def _pool(threads: int) -> ThreadPoolExecutor:
    if threads not in _pools:
        _pools[threads] = ThreadPoolExecutor(threads, thread_name_prefix="polewise")
    return _pools[threads]


if hasattr(os, "register_at_fork"):  # a forked child has none of the parent's threads
    os.register_at_fork(after_in_child=_pools.clear)


def array(tensor: Tensor) -> np.ndarray:
    """The tensor's memory as a contiguous array; copied only if it is not contiguous."""
    return tensor.detach().contiguous().numpy()


def copied(parameter: Tensor) -> np.ndarray:
    """A copy of a parameter's numbers: an array keeps the memory that it shows, and processes that
    share parameters out free theirs after every pass."""
    return array(parameter.detach().clone())


def rows(tensor: Tensor) -> tuple[np.ndarray, int]:
    """The memory of a tensor whose last axis is dense, as one line of numbers, and how far apart
    its rows are in it, as in a slice of a wider tensor; copied only if they are not evenly so."""
    tensor = tensor.detach()
    leading, strides = tensor.shape[:-1], tensor.stride()
    even = (
        tensor.stride(-1) == 1
        and tensor.numel()
        and all(strides[i] == strides[i + 1] * leading[i + 1] for i in range(len(leading) - 1))
    )
    if not even:
        return tensor.contiguous().view(-1).numpy(), tensor.shape[-1]
    stride = strides[len(leading) - 1]
    count = tensor.numel() // tensor.shape[-1]
    line = tensor.as_strided(((count - 1) * stride + tensor.shape[-1],), (1,))
    return line.numpy(), stride


def fresh(x: Tensor) -> Tensor:
    """Contiguous memory like `x`'s for a result, not written yet.

    The system hands out new memory page by page, and 4 KiB at a time that takes three times as
    long as copying into it. Where Linux has pages of 2 MiB for those who ask, large results ask.
    """
    result = torch.empty(x.shape, dtype=x.dtype)
    if _advise is not None and result.nbytes >= _LARGE:
        begin = -(-result.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = result.data_ptr() + result.nbytes - begin
        # Advice: where it is not followed the pages are small, and nothing else differs.
        _advise(ctypes.c_void_p(begin), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)
    return result


_LARGE = 1 << 22
"""Bytes from which a result asks for large pages: two of them."""

_advise = ctypes.CDLL(None).madvise if hasattr(mmap, "MADV_HUGEPAGE") else None


def require_covered(offsets: Tensor, lengths: Tensor, bin_length: int, bins: int) -> None:
    """No row's step lies outside the bins: a compiled loop would read foreign memory."""
    offset, last = offsets.numpy(), (offsets + lengths - 1).numpy()
    if (offset < 0).any() or (offset >= bin_length).any():
        raise ValueError(
            f"offset must lie in [0, bin_length); got {offset.tolist()} for bins of {bin_length}."
        )
    if (last // bin_length >= max(bins, 1)).any():
        raise ValueError(
            f"the coefficients must cover every row; got {bins} bins of {bin_length} for rows "
            f"that start at {offset.tolist()} and have {lengths.tolist()} steps."
        )

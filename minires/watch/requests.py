"""What a GPU's load/store unit makes of the accesses of a warp's lanes: requests, their sectors and their wavefronts.

A request is one execution of a load or store by a warp: the k-th time that each of its lanes comes to the instruction.
`places` has a row for each, with the place in bytes that each of 32 lanes asks for `size` bytes at, -1 where one does not.
Arrays begin at multiples of 128 bytes, so that sectors and banks can be told from places in them.
Source: CUDA C++ Programming Guide, "Global Memory" and "Shared Memory" of "Compute Capability 5.x" and later; Nsight Compute,
"Memory Tables".
"""

from __future__ import annotations

import numpy as np


def requests_of(threads: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The `places` of an instruction to which threads, by their numbers in the block, came in this order."""
    order = np.argsort(threads, kind="stable")
    threads = threads[order]
    visits = np.arange(len(threads)) - np.searchsorted(threads, threads)
    numbers, rows = np.unique(threads // 32 * len(threads) + visits, return_inverse=True)
    places = np.full((len(numbers), 32), -1)
    places[rows, threads % 32] = at[order]
    return places


def units_touched(places: np.ndarray, size: int, unit: int) -> np.ndarray:
    """How many different pieces of `unit` bytes each request touches: sectors of global memory have 32."""
    places = np.sort(np.where(places < 0, places.max(1, keepdims=True), places))
    first, last = places // unit, (places + size - 1) // unit
    spans = last - first + 1
    return spans[:, 0] + np.minimum(np.diff(last), spans[:, 1:]).sum(1)


def words_of_banks(places: np.ndarray, size: int) -> np.ndarray:
    """How many different words of 4 bytes each of the 32 banks of shared memory must give: (requests, turns, 32).

    Up to 4 bytes a lane are asked for in one turn of 32 lanes, 8 in two, more in four; a turn takes as many wavefronts as its
    busiest bank has words.
    """
    at_once = 32 if size <= 4 else 16 if size <= 8 else 8
    turns = places.reshape(-1, at_once, 1)
    words = np.minimum(turns // 4 + np.arange((size + 2) // 4 + 1), (turns + size - 1) // 4)
    words = np.sort(np.where(turns < 0, -1, words).reshape(len(turns), -1))
    turn, i = np.nonzero((words >= 0) & (np.diff(words, prepend=-1) != 0))
    counts = np.bincount(turn * 32 + words[turn, i] % 32, minlength=32 * len(turns))
    return counts.reshape(len(places), -1, 32)

"""What the counters have counted: a launch, and what it did at each line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from .requests import units_touched, words_of_banks

_SAMPLES = 4  # requests that are kept, of an Access


@dataclass
class Access:
    """The accesses of one width and kind to one space at one source line, summed over the blocks that were counted.

    bytes          that a lane asks for
    requests       executions by a warp      smsp__inst_executed_op_global_ld, l1tex__t_requests_pipe_lsu_mem_global_op_ld
    lanes          that took part in them    smsp__thread_inst_executed_per_inst_executed is lanes / requests
    sectors        of 32 bytes, global       l1tex__t_sectors_pipe_lsu_mem_global_op_ld;  sectors / requests is
                                             l1tex__average_t_sectors_per_request_pipe_lsu_mem_global_op_ld
    sectors_least  the distinct bytes of each request over 32, rounded up
    wavefronts     shared                    l1tex__data_pipe_lsu_wavefronts_mem_shared;  wavefronts - wavefronts_least is
                                             l1tex__data_bank_conflicts_pipe_lsu_mem_shared
    wavefronts_least  one for each 32, 16 or 8 lanes (of up to 4, 8 or 16 bytes) of which one is active
    """

    file: str
    line: int
    space: str
    kind: str
    bytes: int
    requests: int = 0
    lanes: int = 0
    sectors: int = 0
    sectors_least: int = 0
    wavefronts: int = 0
    wavefronts_least: int = 0
    samples: list[list[int | None]] = field(default_factory=list)  # the first requests: each lane's place in its array

    @property
    def unit(self) -> str:
        """What it costs: "sectors" of global memory, "wavefronts" of shared memory."""
        return "sectors" if self.space == "global" else "wavefronts"

    @property
    def cost(self) -> int:
        """How many of them."""
        return self.sectors if self.space == "global" else self.wavefronts

    @property
    def cost_least(self) -> int:
        """How many would do."""
        return self.sectors_least if self.space == "global" else self.wavefronts_least

    def count(self, places: np.ndarray) -> None:
        """Add requests, as requests.py has them."""
        self.requests += len(places)
        self.lanes += int((places >= 0).sum())
        if self.space == "global":
            self.sectors += int(units_touched(places, self.bytes, 32).sum())
            self.sectors_least += int(np.ceil(units_touched(places, self.bytes, 1) / 32).sum())
        else:
            words = words_of_banks(places, self.bytes)
            self.wavefronts += int(words.max(2).sum())
            self.wavefronts_least += int(words.any(2).sum())
        kept = places[: _SAMPLES - len(self.samples)].tolist()
        self.samples += [[None if at < 0 else at for at in lanes] for lanes in kept]

    def add(self, other: Access) -> None:
        """Add the counts of another one."""
        for name in ("requests", "lanes", "sectors", "sectors_least", "wavefronts", "wavefronts_least"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass
class Launch:
    """One launch: its geometry, how many of its blocks were counted, and their accesses."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    blocks_counted: int
    accesses: list[Access]
    shared_mem: int
    array_bytes: int  # of the arrays that it was given, each counted once
    arguments: dict[str, float | tuple[int, ...]]  # scalars, and arrays' shapes
    code: str
    scalar: str  # what scalar_t was

    @property
    def blocks(self) -> int:
        """Of the grid."""
        return math.prod(self.grid)

    @property
    def threads(self) -> int:
        """Of a block."""
        return math.prod(self.block)

    def total(self, space: str) -> Access:
        """The sums over the accesses to "global" or "shared" memory. Raises ValueError for another space."""
        if space not in ("global", "shared"):
            raise ValueError(f"space must be 'global' or 'shared', got {space!r}")
        total = Access("", 0, space, "all", 0)
        for access in self.accesses:
            if access.space == space:
                total.add(access)
        return total

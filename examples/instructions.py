"""The instructions of a kernel's busiest loop: of its PTX, counted as it is executed, and of a GPU's machine code.

inspect_kernel.py shows them. PTX needs NVRTC; machine code also nvdisasm: pip install "minires[sass]".
"""

from __future__ import annotations

import base64
import ctypes
import importlib.metadata
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import occupancy
import ptx

import minires as mr
from minires.device.cpu import CpuDevice, compile_library, pack_arguments
from minires.device.cuda import nvrtc_options, prepare, signature_of
from minires.device.source import base_name, find_kernels
from minires.watch.counters import Counters

PTX_KINDS = (  # the first that an operation begins with
    (r"fma|mad\.\w+\.f", "multiply-add"),
    (r"bra|brx|bar|barrier|setp|ret|exit|call|@|selp", "control"),
    (r"(?:add|sub|mul|div|neg|abs|min|max|rcp|sqrt|rsqrt|ex2|lg2|sin|cos|cvt)\b.*\.f(?:32|64)\b", "other arithmetic"),
    (r"shfl|vote|match|redux|activemask", "warp primitive"),
    (r"mov", "move"),
    (r"", "address arithmetic"),
)
SASS_KINDS = (
    (r"[FD]FMA", "multiply-add"),
    (r"BRA|BSSY|BSYNC|EXIT|BAR|WARPSYNC|CALL|RET|U?ISETP|[FD]SETP|U?PLOP3|U?SEL|FSEL|NOP|DEPBAR|ERRBAR|MEMBAR", "control"),
    (r"[FD](?:ADD|MUL|MNMX)|MUFU|I2F|F2I|F2F|FCHK", "other arithmetic"),
    (r"SHFL|VOTE|MATCH|REDUX", "warp primitive"),
    (r"U?MOV|S2U?R|CS2R|R2UR", "move"),
    (r"", "address arithmetic"),
)
SPACES = {"S": "shared", "G": "global", "L": "local", "C": "constant", "": "generic"}


@dataclass
class Loop:
    """The instructions of one round of a loop, by kind; how many rounds there were, where that was counted; and in what."""

    code: str
    kinds: dict[str, float]
    rounds: int | None = None

    @property
    def total(self) -> float:
        """Instructions a round."""
        return sum(self.kinds.values())

    def __str__(self) -> str:
        rounds = "" if self.rounds is None else f" {self.rounds:,} rounds of"
        share = self.kinds.get("multiply-add", 0) / self.total
        lines = [f"{self.code}, the busiest loop:{rounds} {self.total:.1f} instructions, {share:.0%} of them multiply-adds"]
        lines += [f"{count:10.1f}  {kind}" for kind, count in sorted(self.kinds.items(), key=lambda item: -item[1])]
        return "\n".join(lines)


def kind_of(operation: str, kinds: tuple[tuple[str, str], ...]) -> str:
    """What an operation of PTX or of machine code does."""
    if found := re.match(
        r"(ld|st|atom|red)\.(?:\w+\.)*?(param|shared|global|local|const)?\b(?:.*\.v(\d))?.*?(\d+)$", operation
    ):
        what = {"ld": "load", "st": "store"}.get(found[1], "atomic")
        return f"{what} {found[2] or 'generic'} {int(found[3] or 1) * int(found[4]) // 8} B"
    if found := re.match(r"(LD|ST|ATOM|RED)([SGLC]?)\b(?!GSTS)(.*)", operation):
        what = {"LD": "load", "ST": "store"}.get(found[1], "atomic")
        bits = re.search(r"\.[US]?(8|16|64|128)\b", found[3])
        return f"{what} {SPACES[found[2]]} {int(bits[1]) // 8 if bits else 4} B"
    return next(kind for pattern, kind in kinds if re.match(pattern, operation))


def innermost(loops: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those, from a place to another, that hold no other of them."""
    return [one for one in loops if not any(a >= one[0] and b <= one[1] and (a, b) != one for a, b in loops)]


# ---------------------------------------------------------------------------------------------------------------------
# PTX, executed


class Executed(Counters):
    """A watcher of the CPU device: the launches of one kernel execute its PTX, and the blocks of it are counted."""

    def __init__(self, kernel: str, architecture: int) -> None:
        super().__init__(None)
        self._kernel, self._architecture, self.loop = kernel, architecture, None

    def compile(self, now: CpuDevice, code: str, names: tuple[str, ...], scalar: np.dtype) -> dict:
        """Signature and launch of each name expression."""
        if self._kernel not in names:
            return now.runs(compile_library(code, names, scalar), code)
        options = *nvrtc_options(scalar), f"-arch=compute_{self._architecture}"
        compiled = occupancy.compile_with_nvrtc(prepare(code), names, options)
        program, lowered = ptx.translate(compiled["ptx"], counted=True), compiled["names"]
        library = compile_library(program.code, tuple(program.entries), scalar)
        loaded, texts = ctypes.CDLL(str(library.path)), find_kernels(code)

        def run_of(name: str) -> Callable:
            entry = lowered[name]
            blocks = program.blocks[entry]
            counts = (ctypes.c_uint64 * len(blocks)).in_dll(loaded, f"counts_{entry}")

            def run(grid: tuple, block: tuple, args: list, shared: int) -> None:
                ctypes.memset(counts, 0, ctypes.sizeof(counts))
                library.launch(entry, grid, block, pack_arguments([*args, np.uint64(shared)]), 1)()
                if name == self._kernel and not now.watcher.loop:
                    now.watcher.loop = busiest(blocks, list(counts), f"PTX for compute_{self._architecture}")

            return run

        return {n: (signature_of(texts.get(base_name(n)), n, code, scalar), run_of(n)) for n in names}


def busiest(blocks: list[ptx.Block], counts: list[int], code: str) -> Loop | None:
    """Of the loops that hold no other the one in which most instructions ran; None where there is no loop that ran."""
    at = {block.label: i for i, block in enumerate(blocks) if block.label}
    loops = []
    for i, block in enumerate(blocks):
        operation, operands, _ = block.instructions[-1] if block.instructions else ("", [], 0)
        if operation.startswith("bra") and at[operands[0]] <= i and counts[i]:
            loops.append((at[operands[0]], i))
    inner = innermost(loops)
    if not inner:
        return None
    first, last = max(inner, key=lambda one: sum(counts[i] * len(blocks[i].instructions) for i in range(one[0], one[1] + 1)))
    kinds: Counter[str] = Counter()
    for i in range(first, last + 1):
        for operation, _, _ in blocks[i].instructions:
            kinds[kind_of(operation, PTX_KINDS)] += counts[i]
    return Loop(code, {kind: count / counts[last] for kind, count in kinds.items()}, counts[last])


def executed_loop(run: Callable[[], None], kernel: str, architecture: int) -> Loop | None:
    """The busiest loop of the first launch of an instance that `run` does. Slow: each instruction of each thread is done."""
    now = mr.device.current()
    before, watcher = (now.watcher, now.tiling), Executed(kernel, architecture)
    now.watcher, now.tiling = watcher, "cuda"
    try:
        run()
    finally:
        now.watcher, now.tiling = before
    return watcher.loop


# ---------------------------------------------------------------------------------------------------------------------
# Machine code


def nvdisasm() -> str | None:
    """NVIDIA's disassembler: of its wheel or on the path."""
    try:
        files = importlib.metadata.files("nvidia-cuda-nvdisasm") or []
        return next((str(f.locate()) for f in files if f.stem == "nvdisasm"), None)
    except importlib.metadata.PackageNotFoundError:
        return shutil.which("nvdisasm")


def machine_loop(code: str, kernel: str, architecture: int, scalar: np.dtype) -> Loop | None:
    """The loop with most multiply-adds, or else most instructions, of those that hold no other. Raises DeviceError."""
    options = *nvrtc_options(scalar), f"-arch=sm_{architecture}"
    compiled = occupancy.compile_with_nvrtc(prepare(code), (kernel,), options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(base64.b64decode(compiled["cubin"]))
        file.flush()
        result = subprocess.run([nvdisasm(), "-c", file.name], capture_output=True, text=True, check=False)
    if result.returncode:
        raise mr.DeviceError(f"nvdisasm could not read the machine code: {result.stderr.strip()}")
    lines, labels, loops = [], {}, []
    for line in result.stdout.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(lines)
        elif found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)", line):
            lines.append(found[1])
            target = re.search(r"`\((\.L_x_\d+)\)", found[2])
            if found[1].startswith("BRA") and target and target[1] in labels and labels[target[1]] < len(lines) - 1:
                loops.append((labels[target[1]], len(lines)))
    mixes = [Counter(kind_of(o, SASS_KINDS) for o in lines[a:b]) for a, b in innermost(loops)]
    if not mixes:
        return None
    most = max(mixes, key=lambda mix: (mix["multiply-add"], mix.total()))
    return Loop(f"machine code of sm_{architecture}", dict(most))

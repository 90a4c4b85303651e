"""Run one kernel of a CUDA file, as it is found in the wild, under the sanitizer, and print the arrays that it changed.

    python examples/run_kernel.py file.cu "scale<float>" --grid 4 --block 128 \\
        --arg x=arange:512:float32 --arg y=zeros:512:float32 --arg n=512

The file may have a main() and other functions for the host: they are left out. `--arg NAME=VALUE` gives the kernel's
arguments in their order: a number, or an array as KIND:SHAPE:DTYPE, where KIND is zeros, ones, arange or normal (drawn
from a normal distribution) and SHAPE is 512 or 16x32, or a file, NAME=file.npy. `--plain` runs it at the speed of the CPU,
and not thread by thread under the sanitizer.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

import minires as mr
from minires.device.source import blank, closing, spaces

KEEP = re.compile(r"__global__|__device__|__constant__|__shared__|constexpr")
TYPE = re.compile(r"(?:template\s*<[^;{}]*>\s*)?(?:typedef\b|using\b|namespace\b|struct\b|class\b|union\b|enum\b|const\b)")


def without_host_code(code: str) -> str:
    """`code` with spaces in the place of functions and variables of the host: what only nvcc would need."""
    text = re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", lambda m: spaces(m[0]), blank(code), flags=re.MULTILINE)
    begin, gone = 0, []
    while match := re.compile(r"[;{}]").search(text, begin):
        end = match.end()
        if match[0] == "{":
            end = closing(text, match.start())
            end += len(re.match(r"(?:[^;{}()]*;)?", text[end:])[0]) if TYPE.match(text[begin:end].strip()) else 0
        item = text[begin:end]
        is_function = match[0] == "{" and ")" in text[begin : match.start()]
        is_kept = KEEP.search(item) or (TYPE.match(item.strip()) and not is_function)
        if not is_kept:
            gone.append((begin, end))
        begin = end
    for first, last in gone:
        lines = [line if line.lstrip().startswith("#") else spaces(line) for line in code[first:last].split("\n")]
        code = code[:first] + "\n".join(lines) + code[last:]
    return re.sub(
        r'^[ \t]*#[ \t]*include[ \t]*(?:<(?:vector|string|iostream|iomanip|fstream|random|algorithm|chrono)>|"(?!common'
        r'\.cuh)[^"\n]*")',
        lambda m: spaces(m[0]),
        code,
        flags=re.MULTILINE,
    )


def argument(text: str) -> tuple[str, object]:
    """The name and the value of `NAME=VALUE`."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        if value.endswith(".npy"):
            return name, np.load(value, allow_pickle=False)
        if ":" not in value:
            return name, float(value) if re.search(r"[.eEn]", value.removeprefix("0x")) else int(value, 0)
        kind, shape, dtype = (value.split(":") + ["float32"])[:3]
        dims, makers = tuple(map(int, shape.split("x"))), {"zeros": np.zeros, "ones": np.ones}
        if kind in makers:
            return name, makers[kind](dims, dtype)
        if kind == "arange":
            return name, np.arange(np.prod(dims)).reshape(dims).astype(dtype)
        if kind == "normal":
            return name, np.random.default_rng(0).standard_normal(dims).astype(dtype)
        raise ValueError(f"there is no kind {kind!r}")
    except (ValueError, TypeError, OSError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}; an array is zeros:512:float32, say") from None


def dimensions(text: str) -> tuple[int, ...]:
    return tuple(int(d) for d in re.split(r"[x,]", text))


def add_launch_options(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """How a kernel of a file is launched."""
    add = parser.add_argument
    add("--grid", type=dimensions, required=required, help="blocks: 4, or 4x2")
    add("--block", type=dimensions, required=required, help="threads a block: 128, or 16x16")
    add("--shared", type=int, default=0, help="bytes of dynamic shared memory")
    add("--arg", type=argument, action="append", default=[], metavar="NAME=VALUE", help="the arguments in their order")


def read_kernels(path: str) -> str:
    """The part of a CUDA file that is for the device, with a line that lets messages name the file."""
    return f'#line 1 "{Path(path).name}"\n{without_host_code(Path(path).read_text(encoding="utf-8-sig"))}'


def launch_of(code: str, kernel: str, options: argparse.Namespace) -> tuple[Callable[[], None], list]:
    """What launches the kernel as the options say, and its arguments, arrays on the device among them."""
    now = mr.device.current()
    values = [now.to_device(v) if isinstance(v, np.ndarray) else v for _, v in options.arg]
    return lambda: mr.RawKernel(code, kernel)(options.grid, options.block, tuple(values), options.shared), values


def main() -> None:
    parser = argparse.ArgumentParser(description="Run one kernel of a CUDA file under the sanitizer, on the CPU.")
    parser.add_argument("file")
    parser.add_argument("kernel", help='its name; for a template an instance, "scale<float>"')
    add_launch_options(parser)
    parser.add_argument("--plain", action="store_true", help="without the sanitizer")
    parser.add_argument("--seed", type=int, default=0, help="decides the sanitizer's random order of threads")
    arguments = parser.parse_args()
    mr.set_device("cpu")
    run, values = launch_of(read_kernels(arguments.file), arguments.kernel, arguments)
    with contextlib.nullcontext() if arguments.plain else mr.sanitize(seed=arguments.seed):
        run()
    results = [
        (name, before, mr.device.current().to_host(after))
        for (name, before), after in zip(arguments.arg, values, strict=True)
        if isinstance(before, np.ndarray)
    ]
    changed = [(name, after) for name, before, after in results if before.tobytes() != after.tobytes()]
    for name, after in changed:
        print(f"{name} =\n{np.array2string(after, threshold=64, precision=6, suppress_small=True)}")
    if not changed:
        print("no array was changed")
    if not arguments.plain:
        print("the sanitizer finds nothing", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except (mr.DeviceError, OSError, UnicodeDecodeError, ValueError, TypeError) as e:
        sys.exit(f"error: {e}")

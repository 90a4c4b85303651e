"""CUDA's device functions: their prototypes, inputs for them, and what a GPU computes.

    python tests/device_functions.py

makes device_functions.json anew: NVRTC compiles each function with its libdevice, and the late GPU executes that PTX.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

import minires as mr

TABLE = Path(__file__).with_suffix(".json")
SAMPLES = 32
FLOATS = [0, -0.0, 1, -1, 0.5, -0.5, 2.5, -2.5, 3, 1.5, 0.1, 100, 1e-40, 2**-126, 3.4e38, 2**31, -(2**31), 2**63, 2**64]
FLOATS += [np.inf, -np.inf, np.nan, 0.999, -0.75]
INTEGERS = [0, 1, -1, 2, 31, 32, 33, 255, -(2**31), 2**31 - 1, 0x7FFF8000, 0x00FF7F80, 0x80808080, 2**63 - 1, -(2**63), 7]
TYPES = {"float": 4, "double": 8, "int": 4, "unsigned int": 4, "long long int": 8, "unsigned long long int": 8}
TYPES |= {"long int": 8, "bool": 1, "char4": 4, "uchar4": 4, "short2": 4, "ushort2": 4, "unsigned short": 2}
# The largest error that NVIDIA documents, in units of the last place: float, double. Others are exact.
BOUNDS = {
    "rsqrt": (2, 1), "cbrt": (1, 1), "rcbrt": (1, 1), "hypot": (3, 2), "rhypot": (2, 1), "norm3d": (3, 1), "rnorm3d": (2, 1),
    "norm4d": (3, 1), "rnorm4d": (2, 1), "norm": (4, 4), "rnorm": (4, 4), "exp": (2, 1), "exp2": (2, 1), "exp10": (2, 1),
    "expm1": (1, 1), "log": (1, 1), "log2": (1, 1), "log10": (2, 1), "log1p": (1, 1), "sin": (2, 2), "cos": (2, 2),
    "tan": (4, 2), "sincos": (2, 2), "sinpi": (1, 2), "cospi": (1, 2), "sincospi": (1, 2), "asin": (2, 2), "acos": (2, 2),
    "atan": (2, 2), "atan2": (3, 2), "sinh": (3, 2), "cosh": (2, 1), "tanh": (2, 1), "asinh": (3, 3), "acosh": (4, 3),
    "atanh": (3, 2), "pow": (4, 2), "erf": (2, 2), "erfc": (4, 5), "erfinv": (2, 5), "erfcinv": (4, 6), "erfcx": (4, 4),
    "normcdf": (5, 5), "normcdfinv": (5, 8), "lgamma": (6, 4), "tgamma": (5, 10), "cyl_bessel_i0": (6, 6), "cyl_bessel_i1": (6, 6), "fdivide": (2, 0),
}  # fmt: skip
BESSEL = dict.fromkeys(("j0", "j1", "y0", "y1", "jn", "yn"), 9)  # below 8; above, an absolute error
# Approximations: from the sizes of the first and the last argument, of the result, and of its last place.
INTRINSICS = {
    "__expf": lambda x, _, y, unit: (3 + 1.173 * x) * unit,
    "__exp10f": lambda x, _, y, unit: (3 + 2.97 * x) * unit,
    "__logf": lambda x, _, y, unit: np.where(abs(x - 1.25) <= 0.75, 2**-20.4, 4 * unit),
    "__log2f": lambda x, _, y, unit: np.where(abs(x - 1.25) <= 0.75, 2**-21, 3 * unit),
    "__log10f": lambda x, _, y, unit: np.where(abs(x - 1.25) <= 0.75, 2**-20.4, 4 * unit),
    "__powf": lambda x, p, y, unit: 2**-20 * y * (1 + abs(p * np.log2(x))),
    "__fdividef": lambda x, d, y, unit: np.where(d <= 2.0**126, 3 * unit, np.inf),
    "__tanf": lambda x, _, y, unit: np.where(x <= 1.5, 2**-19 * (1 + y * y), np.inf),
    "__tanhf": lambda x, _, y, unit: 2**-10 * y,
} | dict.fromkeys(("__sinf", "__cosf", "__sincosf"), lambda x, _, y, unit: np.where(x <= np.pi, 2**-20.1, np.inf))


def prototypes() -> list[str]:
    """As "float sinf(float)"."""
    return list(json.loads(TABLE.read_text()))


def read(prototype: str) -> tuple[str, str, list[str]]:
    """What it returns, its name, and its parameters' types."""
    returned, name, parameters = re.fullmatch(r"(.*?) (\w+)\((.*)\)", prototype).groups()
    return returned, name, parameters.split(", ")


def kernel(chosen: list[str]) -> str:
    """A kernel whose thread calls function `f` with 4 words of input, and writes 4 words of output."""
    cases = []
    for number, prototype in enumerate(chosen):
        returned, name, parameters = read(prototype)
        before, given, after, outputs = [], [], [], 1
        for i, kind in enumerate(parameters):
            base = kind.removesuffix(" *").removeprefix("const ")
            if kind.startswith("const "):  # norm(int, const float*)
                before.append(f"{base} a{i}[3] = {{as<{base}>(in[0]), as<{base}>(in[1]), as<{base}>(in[2])}};")
                given.append(f"a{i}")
            elif kind.endswith("*"):
                before.append(f"{base} a{i};")
                after.append(f"put(out + {outputs}, a{i});")
                given.append(f"&a{i}")
                outputs += 1
            else:
                given.append("3" if name.startswith(("norm", "rnorm")) and len(parameters) == 2 else f"as<{base}>(in[{i}])")
                if name.startswith(("jn", "yn")) and i == 0:
                    given[0] = "int(in[0] & 7)"
        call = f"{name}({', '.join(given)})"
        call = f"{call};" if returned == "void" else f"put(out, {returned.replace(' int', '')}({call}));"
        call = call.replace("put(out, unsigned long long(", "put(out, (unsigned long long)(")
        call = call.replace("put(out, long long(", "put(out, (long long)(").replace("unsigned short(", "(unsigned short)(")
        cases.append(f"case {number}: {{ {' '.join(before)} {call} {' '.join(after)} break; }}")
    return (
        "typedef unsigned long long word;\n"
        "template <class T> __device__ T as(word w) { T x; memcpy(&x, &w, sizeof x); return x; }\n"
        "template <class T> __device__ void put(word* to, T x) { word w = 0; memcpy(&w, &x, sizeof x); *to = w; }\n"
        'extern "C" __global__ void call(int f, const word* inputs, word* outputs) {\n'
        "const word* in = inputs + 4 * threadIdx.x;\nword* out = outputs + 4 * threadIdx.x;\nswitch (f) {\n"
        + "\n".join(cases)
        + "\n}\n}\n"
    )


def inputs(prototype: str) -> np.ndarray:
    """SAMPLES x 4 words, whose low bits are the arguments: edges first, then numbers of any size."""
    words = np.zeros((SAMPLES, 4), np.uint64)
    parameters = [p for p in read(prototype)[2] if not p.endswith("*") or p.startswith("const ")]
    parameters = [parameters[-1]] * 3 if "const " in prototype else parameters  # norm takes three numbers, and their count
    for column, kind in enumerate(p.removesuffix(" *").removeprefix("const ") for p in parameters):
        state = np.uint64(column + 1)
        for row in range(SAMPLES):
            state = np.uint64((int(state) * 6364136223846793005 + 1442695040888963407) % 2**64)
            edge, random = row * (2 * column + 1) + column, int(state) >> 32
            if kind in ("float", "double"):
                near = (random / 2**32 - 0.5) * (8 if random % 4 else 80)
                value = FLOATS[edge % len(FLOATS)] if row < len(FLOATS) else near
                with np.errstate(over="ignore", under="ignore"):
                    bits = np.array(value, f"f{TYPES[kind]}").view(f"u{TYPES[kind]}").item()
            else:
                bits = INTEGERS[edge % len(INTEGERS)] if row < len(INTEGERS) else int(state) >> (random % 40)
            words[row, column] = bits % 2 ** (8 * TYPES[kind])
    return words


def compute(chosen: list[str]) -> dict[str, np.ndarray]:
    """What each function gives on the current device: SAMPLES x 4 words, 0 where it gives fewer."""
    now, run, found = mr.device.current(), mr.RawKernel(kernel(chosen), "call"), {}
    for number, prototype in enumerate(chosen):
        outputs = now.to_device(np.zeros((SAMPLES, 4), np.uint64))
        run((1,), (SAMPLES,), (number, now.to_device(inputs(prototype)), outputs))
        found[prototype] = now.to_host(outputs)
    return found


def expected() -> dict[str, np.ndarray]:
    """What a GPU gives."""
    return {
        p: np.array([int(word, 16) for word in words.split()], np.uint64).reshape(SAMPLES, 4)
        for p, words in json.loads(TABLE.read_text()).items()
    }


def numbers(words: np.ndarray, kind: str) -> np.ndarray:
    """The low bits of words as numbers of a type of floats, in float64."""
    with np.errstate(invalid="ignore"):
        return words.astype(f"u{TYPES[kind]}").view(f"f{TYPES[kind]}").astype(float)


def allowed(prototype: str, kind: str, result: np.ndarray) -> np.ndarray:
    """How far each result may be from a GPU's, whose errors, and ours, are those that NVIDIA documents; inf: anywhere."""
    _, name, parameters = read(prototype)
    words = inputs(prototype)
    with np.errstate(over="ignore", invalid="ignore"):
        unit = np.abs(np.spacing(result.astype(f"f{TYPES[kind]}"))).astype(float)
    last = numbers(words[:, len([p for p in parameters if "*" not in p]) - 1], kind) if "const" not in prototype else None
    base = name if name in BOUNDS else name.removesuffix("f")
    if name in INTRINSICS:
        return INTRINSICS[name](np.abs(numbers(words[:, 0], kind)), np.abs(last), np.abs(result), unit)
    if base in BESSEL:
        units = (2 * BESSEL[base] + 1) * unit
        far = np.where(np.abs(last) < 8, units, np.maximum(units, 5e-12 if kind == "double" else 4.4e-6))
        return np.where(np.abs(last) < 0.01, np.inf, far) if base in ("jn", "yn") else far
    bound = BOUNDS.get(base, (0, 0))[kind == "double"]
    units = (2 * bound + 1 if bound else 0) * unit
    return np.where((last > -10.001) & (last < -2.264), np.inf, units) if base == "lgamma" else units


def main() -> None:
    known = prototypes()
    found = compute(known)
    lines = [f"{json.dumps(p)}: {json.dumps(' '.join(f'{w:x}' for w in found[p].ravel().tolist()))}" for p in known]
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    if "LATE_GPU_SEED" in os.environ:
        sys.exit(main())
    from conftest import late_gpu_environment

    sys.exit(subprocess.run([sys.executable, __file__], env=os.environ | late_gpu_environment(0), check=False).returncode)

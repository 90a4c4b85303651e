"""Mutation testing: does the suite notice when a kernel is wrong?

    python tests/mutate.py                    every mutant of every kernel; goes on where it was stopped
    python tests/mutate.py --only gemm relu   those of some files

Makes one small change at a time to a file of `kernels/` and runs the tests of that file (test_<file>.py; all kernels
answer for common.cuh) in a copy of the project. A mutant is killed when a test fails or hangs. Results go to
build/mutants.jsonl. tests/equivalent_mutants.txt lists those that change nothing a test could see, with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import limited
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "build" / "mutants.jsonl"
EQUIVALENT = ROOT / "tests" / "equivalent_mutants.txt"
QUICK = "float and sanitizer"  # these tests run first: they notice most mutants, and plain kernels take long to compile
COUNTED = "test_inspect_kernel.py::test_a_training_step"  # sectors and wavefronts of the cuda device's tiles
TESTS = {  # of the other files those of their name
    "common.cuh": [f"test_{path.stem}.py" for path in sorted((ROOT / "kernels").glob("*.cu"))],
    "batchnorm.cu": ["test_batchnorm.py", COUNTED],
    "conv3x3.cu": ["test_conv3x3.py", "test_inference.py", COUNTED],
}


@dataclass(frozen=True)
class Mutant:
    file: str
    line: int
    operator: str
    before: str
    after: str
    key: str  # without the line's number: it stays when lines above change


def toggle(table: dict[str, str]):
    return lambda m: f" {table[m.group(1)]} "


OPERATORS = [  # name, pattern, replacement
    ("barrier", re.compile(r"__syncthreads\(\);"), lambda m: ";"),
    ("compare", re.compile(r" (<=|<|>=|>) "), toggle({"<": "<=", "<=": "<", ">": ">=", ">=": ">"})),
    ("sign", re.compile(r" (\+=|-=|\+|-) "), toggle({"+": "-", "-": "+", "+=": "-=", "-=": "+="})),
    ("constant", re.compile(r"(?<![\w.])(\d+)(?![\w.])"), lambda m: str(int(m.group(1)) + 1)),
    ("bounds", re.compile(r"if \(.*\) return;"), lambda m: ";"),
    ("condition", re.compile(r" && [^&|?:;]+?(?=\)? \?| &&|;|\) )"), lambda m: ""),
    ("indices", re.compile(r"\[([^\[\]]+)\]\[([^\[\]]+)\]"), lambda m: f"[{m.group(2)}][{m.group(1)}]"),
    ("term", re.compile(r" [+-] (?:\w+ \* )?[\w.]+(?:\[\w+\])?(?: \* \w+)?(?=[ ;,)\]])"), lambda m: ""),
]
SUFFIXES = {".py", ".cu", ".cuh", ".cpp", ".h"}
SKIPPED = re.compile(r'^\s*(#|//|template|extern "C"|using|static_assert|struct|const scalar_t\*|scalar_t\*)')


def mutants_of(file: str) -> list[Mutant]:
    found, seen = {}, Counter()
    for number, line in enumerate((ROOT / "kernels" / file).read_text().splitlines(), start=1):
        code, slashes, comment = line.partition("//")
        if SKIPPED.match(line) or "__restrict__" in code:
            continue
        for name, pattern, replacement in OPERATORS:
            if name == "indices" and "__shared__" in code:
                continue
            for match in pattern.finditer(code):
                after = code[: match.start()] + replacement(match) + code[match.end() :] + slashes + comment
                if after != line and (number, after) not in found:
                    key = f"{file} | {line.strip()} | {after.strip()}"
                    seen[key] += 1
                    key += f" | {seen[key]}" if seen[key] > 1 else ""
                    found[number, after] = Mutant(file, number, name, line, after, key)
    return list(found.values())


def run_tests(tree: Path, file: str, limits: tuple[float, float]) -> tuple[bool, str, list[float]]:
    """Whether the tests of a file pass, the quick ones and then all; what the last of them printed; the seconds of each."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
    environment = {
        "PYTHONPATH": str(tree),
        "XDG_CACHE_HOME": str(tree / "cache"),
        "MINIRES_DEVICE": "cpu",
        "MINIRES_NUM_THREADS": "1",
    }
    seconds = []
    for options, limit in zip((["-k", QUICK], []), limits, strict=True):
        began = time.monotonic()
        paths = [f"tests/{name}" for name in TESTS.get(file, [f"test_{Path(file).stem}.py"])]
        status, output = limited.run([*command, *options, *paths], limit, environment, tree)
        seconds.append(time.monotonic() - began)
        if status != "0":
            return False, "timeout" if status == "timeout" else output, seconds
    return True, output, seconds


@contextlib.contextmanager
def copy_of_the_project(cache: Path | None = None) -> Iterator[Path]:
    """A copy of what the tests need; what `cache` holds need not be compiled again in it."""
    ignore = shutil.ignore_patterns("__pycache__", "results")
    with tempfile.TemporaryDirectory(dir=RESULTS.parent, prefix="mutant-") as name:  # where what is kept can be linked to
        tree = Path(name)
        for folder in ("minires", "kernels", "tests", "examples"):
            shutil.copytree(ROOT / folder, tree / folder, ignore=ignore)
        if cache:
            shutil.copytree(cache, tree / "cache", copy_function=os.link)
        yield tree


def digest() -> str:
    """Of all that a test's result can depend on."""
    files = sorted(p for folder in ("minires", "kernels", "tests") for p in (ROOT / folder).rglob("*") if p.suffix in SUFFIXES)
    return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()[:16]


def unmutated(file: str, folder: Path) -> tuple[Path, tuple[float, float]]:
    """What the tests of `file` compile without a mutant, and their time limits for one with; they must pass. It is kept."""
    limits = folder / file / "limits.json"
    if not limits.exists():
        with copy_of_the_project() as tree:
            passed, output, seconds = run_tests(tree, file, (3600, 3600))
            if not passed:
                raise SystemExit(f"error: the tests of {file} do not pass as it is:\n{output[-2000:]}")
            shutil.copytree(tree / "cache", folder / file / "cache", dirs_exist_ok=True)
            limits.write_text(json.dumps([3 * s + 30 for s in seconds]))
    return folder / file / "cache", tuple(json.loads(limits.read_text()))


def judge(mutant: Mutant, cache: Path, limits: tuple[float, float]) -> dict:
    """Run the tests of the mutant's file in a copy of the project."""
    with copy_of_the_project(cache) as tree:
        path = tree / "kernels" / mutant.file
        lines = path.read_text().splitlines()
        lines[mutant.line - 1] = mutant.after
        path.write_text("\n".join(lines) + "\n")
        passed, output, _ = run_tests(tree, mutant.file, limits)
    status = "survived" if passed else "killed"
    if "could not compile the kernels" in output:
        status = "invalid"
    reason = next((line for line in output.splitlines() if line.startswith("E  ")), output[-200:])
    return {"key": mutant.key, "line": mutant.line, "operator": mutant.operator, "status": status, "reason": reason[:200]}


def read_results() -> dict[str, dict]:
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {r["key"]: r for r in map(json.loads, lines)}


def read_equivalent() -> set[str]:
    lines = EQUIVALENT.read_text().splitlines() if EQUIVALENT.exists() else []
    return {line for line in lines if " | " in line and not line.startswith("#")}


def summarise(mutants: list[Mutant], results: dict[str, dict]) -> None:
    equivalent = read_equivalent()
    judged = [results[m.key] for m in mutants if m.key in results and m.key not in equivalent]
    valid = [r for r in judged if r["status"] != "invalid"]
    for name, chosen in (("barriers", [r for r in valid if r["operator"] == "barrier"]), ("all", valid)):
        killed = [r for r in chosen if r["status"] == "killed"]
        print(f"{name}: {len(killed)} killed of {len(chosen)}: {len(killed) / max(len(chosen), 1):.1%}")
    listed = len([m for m in mutants if m.key in equivalent])
    print(f"besides, {len(judged) - len(valid)} do not compile, and {listed} are listed as equivalent")
    for result in valid:
        if result["status"] == "survived":
            print(f"survived: {result['key']}  (line {result['line']})")


def main() -> None:
    parser = argparse.ArgumentParser(description="Mutation testing of the kernels.")
    parser.add_argument("--only", nargs="*", default=[], help="names of kernel files without their ending")
    parser.add_argument("--operator", choices=[name for name, _, _ in OPERATORS], help="only this kind of change")
    parser.add_argument("--again", action="store_true", help="judge survivors again, for instance after a test changed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    files = sorted(p.name for p in (ROOT / "kernels").glob("*.cu*"))
    files = [f for f in files if not arguments.only or f.split(".")[0] in arguments.only]
    mutants = [m for f in files for m in mutants_of(f) if arguments.operator in (None, m.operator)]
    results = read_results()
    equivalent = read_equivalent()
    survived = {k for k, r in results.items() if r["status"] == "survived" and arguments.again}
    todo = [m for m in mutants if m.key not in equivalent and (m.key not in results or m.key in survived)]
    random.Random(0).shuffle(todo)  # a run that is stopped has judged a sample
    RESULTS.parent.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        kept = RESULTS.parent / f"unmutated-{digest()}"
        file = stack.enter_context(RESULTS.open("a"))
        pool = stack.enter_context(ThreadPoolExecutor(arguments.jobs))
        touched = sorted({m.file for m in todo})
        known = dict(zip(touched, pool.map(functools.partial(unmutated, folder=kept), touched), strict=True))
        judged = pool.map(lambda mutant: judge(mutant, *known[mutant.file]), todo)
        for result in tqdm(judged, total=len(todo), unit="mutant"):
            results[result["key"]] = result
            file.write(json.dumps(result) + "\n")
            file.flush()
    summarise(mutants, results)


if __name__ == "__main__":
    main()

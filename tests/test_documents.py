"""README.md, kernels/README.md and tests/README.md: every command runs, every link resolves, every public name is documented."""

import importlib.util
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import mutate
import numpy as np
import pytest
import train_cifar
from test_debugging import DEBUGGING

import minires as mr

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ["README.md", "kernels/README.md", "tests/README.md"]
SMALL = "--train-size 64 --test-size 50 --depth 8"
ONE_EPOCH = f"{SMALL} --epochs 1"

LESSONS = sorted(path.stem for path in (ROOT / "examples").glob("lesson*.py"))
BY_CI = ".ci/run"
PARSED = "its options are parsed"  # as those of the runs of minutes and hours
ELSEWHERE = {  # where a test runs a command, as it stands or in another size
    "python examples/gemm_ladder.py": "test_gemm_ladder.py::test_the_table_of_the_ladder",
    "python examples/conv_ladder.py": "test_conv_ladder.py::test_the_table_of_the_ladder",
    "python examples/evaluate.py": "test_evaluate.py::test_the_shipped_network_on_real_images",
    "python examples/inspect_kernel.py --step --batch 128": "test_inspect_kernel.py::test_a_training_step",
    "python examples/inspect_kernel.py conv3x3 --layer 2": "test_inspect_kernel.py::test_the_busiest_loop_by_hand",
    **dict.fromkeys(DEBUGGING, "test_debugging.py"),
    **{f"python examples/{name}.py": "test_notebook.py::test_the_notebook_is_what_its_sources_make" for name in LESSONS[2:]},
}
PLAN = {  # what runs a command, or what is added to it to make it short; all others run as they stand
    "python3 -m venv .venv && .venv/bin/pip install -e '.[plot]' && .venv/bin/python examples/train_cifar.py": BY_CI,
    "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest": BY_CI,
    "python3 -m venv .venv && .venv/bin/pip install -e '.[plot]' && "
    ".venv/bin/python examples/classify.py examples/results/cat.jpg": BY_CI,
    ". .venv/bin/activate": BY_CI,
    "python examples/train_cifar.py --epochs 1 --out runs/mine": SMALL,
    "python examples/train_cifar.py": PARSED,
    "python examples/train_cifar.py --epochs 120 --lr 0.2": PARSED,
    "python examples/train_cifar.py --device cpu --epochs 5 --train-size 10000": PARSED,
    "python examples/train_cifar.py --profile": ONE_EPOCH,
    "python examples/benchmark.py": "--batch-sizes 1 --repeats 1",
    "python tests/mutate.py": "--only relu --operator sign",
    "python examples/paper_beside_pytorch.py": "--steps 2",
    "pytest tests/test_properties.py --hypothesis-profile=long": "-n 0 -k avg_pool2d",
}
ENDS_OTHERWISE = {  # the exit status, and what is printed
    "python examples/exercises.py mine.cu leaky_relu": (1, r"leaky_relu +not yet: "),  # the body is still empty
    "python tests/gpu_check.py --only sanitizer --out report": (1, "error: the cuda device cannot be used: "),
    "python tests/gpu_check.py --out report": (1, "error: the cuda device cannot be used: "),
}
PRINTS = {  # in this order
    "python examples/classify.py --weights runs/mine/best.safetensors examples/results/cat.jpg": [r"cat.jpg:  \w+ \d"],
    "python examples/evaluate.py runs/mine/best.safetensors": [r"accuracy \d+\.\d+%\n\nclass "],
    "python examples/train_cifar.py --resume runs/mine --epochs 2": ["resumed  in epoch 2", "epoch 2/2  .*images/s"],
    "python tests/mutate.py": ["all: 2 killed of 2: 100"],
    "python examples/paper_beside_pytorch.py": [
        r"minires +2 steps.*PyTorch +2 steps",
        r"minires and PyTorch first differ by more than .*, 0.001 at step none",
    ],
    "python examples/lesson1_first_kernel.py": [
        r"axpy on 1000 elements: as NumPy's: True",
        r"element 999 was computed by thread 231 of block 3",
        r"relu of 1000 elements: as NumPy's: True",
        r"kernel axpy, RawKernel:4, block \(3, 0, 0\), thread \(232, 0, 0\): a read outside the array: y\[1000\]",
    ],
    "python examples/inspect_kernel.py conv3x3 --layer 2 --batch 8": [r"kernels/conv3x3.cu", r"1.00 x wavefronts"],
}


def commands(document: str) -> list[str]:
    """What stands in indented blocks or between backquotes and begins as a command does, in its order, each once."""
    text = (ROOT / document).read_text()
    pieces = re.findall(r"^    (.+)$|`([^`\n]+)`", text, re.MULTILINE)
    begins = re.compile(r"(?:[A-Z_]+=\S+ )*(?:\S*python3?|\S*pytest|MINIRES_\S+|cp|wc|\.) .*/")
    found = [block or inline for block, inline in pieces]
    return list(dict.fromkeys(command for command in found if begins.match(command)))


def test_the_plan_is_about_these_documents():
    found = [command for document in DOCUMENTS for command in commands(document)]
    assert len(found) > 25
    assert not (PLAN.keys() | ENDS_OTHERWISE.keys() | PRINTS.keys() | ELSEWHERE.keys()) - set(found)
    for place in ELSEWHERE.values():
        file, _, test = place.partition("::")
        assert f"def {test or 'test_'}" in (ROOT / "tests" / file).read_text()


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """What a clone of the repository holds, and data in the format of CIFAR-10, a few drawn images many times."""
    folder = tmp_path_factory.mktemp("clone") / "minires"
    private = shutil.ignore_patterns(".git", ".venv", "runs", "data", "build", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, folder, ignore=private)
    data = folder / "data" / mr.cifar.FOLDER
    data.mkdir(parents=True)
    for i, name in enumerate(mr.cifar.TRAIN_FILES + mr.cifar.TEST_FILES):
        (data / name).write_bytes(mr.cifar.synthetic_records(100, i) * 100)
    return folder


def run(command: str, folder: Path, **more: str) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # minires itself is this one: elsewhere its kernels would be compiled once more.
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "MINIRES_DEVICE": mr.get_device()}
    environment |= {"MINIRES_DATA": "data", "TORCHDYNAMO_DISABLE": "1"} | more  # PyTorch's compiler takes a minute
    bash = ["bash", "-c", command]
    return subprocess.run(bash, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_commands_run_in_order(document, clone, current_device):
    if current_device == "cuda":
        pytest.skip("once is enough, on the CPU: a check of the GPU within a check of the GPU would take long")
    before = {command for other in DOCUMENTS[: DOCUMENTS.index(document)] for command in commands(other)}
    for command in (command for command in dict.fromkeys(commands(document)) if command not in before):
        how = PLAN.get(command, "")
        if how == BY_CI or command in ELSEWHERE:
            continue
        if how == PARSED:
            train_cifar.make_parser().parse_args(shlex.split(command)[2:])
            continue
        if "pytorch" in command and not importlib.util.find_spec("torch"):
            continue
        result = run(f"{command} {how}", clone)
        status, words = ENDS_OTHERWISE.get(command, (0, ".*".join(PRINTS.get(command, []))))
        assert result.returncode == status, f"{command}\n{result.stdout}{result.stderr}"
        assert re.search(words, result.stdout + result.stderr, re.DOTALL), f"{command}\n{result.stdout}{result.stderr}"


def test_lessons_are_short():
    assert len(LESSONS) == 7
    assert all(len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) < 80 for name in LESSONS)


def test_the_code_of_the_readme_runs():
    readme = (ROOT / "README.md").read_text()
    section = readme[readme.index("## Use it") : readme.index("## What to expect")]
    code = "\n".join(line[4:] for line in section.splitlines() if line.startswith("    ") or not line)
    names: dict = {}
    exec(code, names)
    assert np.isfinite(names["loss"].item())
    assert (names["y"].numpy() == 1 + 2 * np.arange(100)).all()


def test_the_example_of_an_operation(clone, tmp_path, current_device):
    """The patch fits, and what it adds passes its own test, the linter and the type checker."""
    if current_device == "cuda" or not shutil.which("git"):
        pytest.skip("once is enough, on the CPU, where there is git")
    tree = tmp_path / "minires"
    shutil.copytree(clone, tree, ignore=shutil.ignore_patterns("data", "results"))
    steps = (
        "git apply examples/leaky_relu.patch",
        "pytest tests/test_leaky_relu.py -n 0 -q",
        "ruff check . && ruff format --check . && mypy",
    )
    for command in steps:
        result = run(command, tree, PYTHONPATH=str(tree))
        assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"


def test_what_trains_has_as_many_lines_as_the_readme_says():
    five = [ROOT / "minires" / f"{name}.py" for name in ("tensor", "functional", "nn", "resnet", "optim")]
    kernels = list((ROOT / "kernels").glob("*.cu*"))
    lines = [sum(len(path.read_text().splitlines()) for path in paths) for paths in (five, kernels)]
    assert lines[0] <= 1300 and lines[1] <= 800 and len(kernels) == 12
    readme = (ROOT / "README.md").read_text()
    assert f"these five files and twelve kernels, {sum(lines):,} lines," in readme
    assert f"{sum(lines):,} lines to read" in readme


def test_ci_runs_the_commands_that_make_an_environment():
    script = (ROOT / ".ci" / "run").read_text()
    for command in (command for command, how in PLAN.items() if how == BY_CI):
        assert command in script, f".ci/run lacks: {command}"


# ---------------------------------------------------------------------------------------------------------------------
# Links


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_resolve(document):
    path = ROOT / document
    links = re.findall(r"\]\(([^)]+)\)", path.read_text())
    assert len(links) > 5
    for link in links:
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_named_exist(document):
    for name in re.findall(r"`((?:examples|tests|minires|kernels)/[\w./-]+)`", (ROOT / document).read_text()):
        assert (ROOT / name).exists(), name


def test_every_kernel_has_its_stop_on_the_tour():
    tour = (ROOT / "kernels" / "README.md").read_text()
    for path in (ROOT / "kernels").glob("*.cu*"):
        assert f"[`{path.name}`]({path.name})" in tour


def test_the_equivalent_mutants_are_mutants_of_these_kernels():
    files = [path.name for path in (ROOT / "kernels").glob("*.cu*")]
    keys = {mutant.key for file in files for mutant in mutate.mutants_of(file)}
    assert len(keys) > 700 and mutate.read_equivalent() < keys


# ---------------------------------------------------------------------------------------------------------------------
# Docstrings


def public_objects():
    modules = [mr, mr.checkpoint, mr.cifar, mr.device, mr.functional, mr.nn, mr.optim, mr.resnet]
    for module in modules:
        yield module.__name__, module
        for name, value in vars(module).items():
            if name not in getattr(module, "__all__", vars(module)):
                continue
            ours = getattr(value, "__module__", "").startswith("minires")
            if name.startswith("_") or not (inspect.isclass(value) or inspect.isfunction(value)) or not ours:
                continue
            yield f"{module.__name__}.{name}", value
            if inspect.isclass(value):
                for method, function in vars(value).items():
                    public = inspect.isfunction(function) or isinstance(function, property)
                    if public and not method.startswith("_"):
                        yield f"{module.__name__}.{name}.{method}", function


def test_every_public_name_has_a_docstring():
    objects = dict(public_objects())
    assert len(objects) > 60
    # A dataclass without a docstring gets its signature as one.
    lacking = [
        name
        for name, value in objects.items()
        if not inspect.getdoc(value) or inspect.getdoc(value).startswith(f"{name.rsplit('.')[-1]}(")
    ]
    assert not lacking
    for name, value in vars(mr.functional).items():
        if inspect.isfunction(value) and value.__module__ == "minires.functional" and not name.startswith("_"):
            doc = inspect.getdoc(value)
            assert "Raises" in doc and re.search(r"shape|\(N", doc), f"{name} does not state shapes or errors"
            assert value.__annotations__.keys() == inspect.signature(value).parameters.keys() | {"return"}, name


def test_help_reads_well():
    result = subprocess.run([sys.executable, "-c", "help('minires')"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "minires: a small deep-learning library whose every floating-point operation is a CUDA" in result.stdout
    for name in mr.__all__:
        if inspect.isclass(getattr(mr, name)) or inspect.isfunction(getattr(mr, name)):
            assert re.search(rf"(class |^    ){name}\b", result.stdout, re.MULTILINE), name


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def report():
    return json.loads((ROOT / "examples" / "results" / "cpu-xeon" / "report.json").read_text())


def test_the_places_on_the_roofline_are_the_reports():
    tour = (ROOT / "kernels" / "README.md").read_text()
    for place in report()["places"]:
        row = f"| `{place['kernel']}` | {place['flop_per_byte']:.2f} | {place['gb_per_s']:.1f} | "
        row += f"{place['gflop_per_s']:.2f} | {place['limit']} | {place['of_roof']} |"
        assert row in tour, row


@pytest.mark.parametrize("name", ["ladder.md", "conv_ladder.md"])
def test_the_ladders_are_those_measured(name):
    ladder = (ROOT / "examples" / "results" / "cpu-xeon" / name).read_text()
    table = ladder[ladder.index("| step") :].strip().split("\n\n")[0]
    assert table.count("\n") == 7 and table in (ROOT / "kernels" / "README.md").read_text()


def test_the_speed_is_the_reports():
    readme = (ROOT / "README.md").read_text()
    steps = {(row["what"], row["who"]): row for row in report()["steps"]}
    for (what, who), row in steps.items():
        if who == "minires":
            kinds = "eager", "channels-last", "compiled", "compiled channels-last"
            ratios = " | ".join(f"{steps[what, f'PyTorch {k}']['minires_is_faster_by']:.2f}" for k in kinds)
            assert f"| {what} | {row['images_per_s']:,.0f} | {ratios} |" in readme


def test_the_steps_at_which_rounding_parts_two_libraries():
    results = ROOT / "examples" / "results" / "paper-beside-pytorch" / "losses.json"
    apart, losses = (json.loads(results.read_text())[key] for key in ("apart", "losses"))
    ours, twin = apart["minires"], apart["PyTorch, moved by a rounding"]
    text = " ".join((ROOT / "tests" / "README.md").read_text().split())
    assert f"0.01 % first in step {ours['0.0001']} and by more than 1 % in step {ours['0.01']}," in text
    assert f"do so in steps {twin['0.0001']} and {twin['0.01']}," in text
    means = [np.mean(losses[name][-200:]) for name in ("minires", "PyTorch")]
    assert f"a mean loss of {means[0]:.3f} in minires and {means[1]:.3f} in PyTorch" in text


def test_the_accuracy_is_the_last_of_the_metrics():
    lines = (ROOT / "examples" / "results" / "resnet20" / "metrics.jsonl").read_text().splitlines()
    command, last = json.loads(lines[0])["command"], json.loads(lines[-1])
    assert last["epoch"] == len(lines) - 1 >= 16 and last["dataset"] == "cifar10"
    row = rf"\| `{re.escape(command.split(' --no-progress')[0])}` \| {100 * last['test_accuracy']:.2f} % \|"
    assert re.search(row, (ROOT / "README.md").read_text())

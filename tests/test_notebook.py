"""The notebook is what its sources make; its kernel can be interrupted; what the instruments show there."""

import re
from pathlib import Path

import numpy as np
import pytest

import minires as mr
from minires.watch import display

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(autouse=True)
def on_the_cpu(current_device):
    if current_device != "cpu":
        pytest.skip("the notebook's outputs are those of the cpu device")


def same(ours: str, theirs: str) -> bool:
    """The same words and whole numbers; other numbers are rounded differently by other compilers."""
    number = r"-?\d+\.\d+(?:e[-+]?\d+)?"
    a, b = (re.findall(number, text) for text in (ours, theirs))
    close = len(a) == len(b) and np.allclose(np.array(a, float), np.array(b, float), rtol=0.05, atol=2e-3)
    return close and re.sub(number, "#", ours) == re.sub(number, "#", theirs)


def texts(output: dict) -> str:
    shown = output.get("text") or "\n".join(text for _, text in sorted(output["data"].items()))
    return re.sub(r"^device: .*", "device:", shown)


def test_same_can_say_no():
    assert same("loss 0.031 of 3", "loss 0.032 of 3") and same("by 3.1e-15", "by 2.9e-14")
    assert not same("loss 0.031 of 3", "loss 0.031 of 4") and not same("loss 0.31", "loss 0.37")
    assert not same("loss 0.3", "cost 0.3") and not same("1.0 2.0", "1.0")


def test_the_notebook_is_what_its_sources_make():
    for module in ("jupytext", "nbclient", "ipykernel", "torch"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    import nbformat
    import notebook

    made, stored = notebook.run(notebook.make()), nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    again = "make it anew: python examples/notebook.py"
    assert [cell.source for cell in made.cells] == [cell.source for cell in stored.cells], again
    for cell, known in zip(made.cells, stored.cells, strict=True):
        outputs, expected = ([texts(o) for o in c.get("outputs", [])] for c in (cell, known))
        assert len(outputs) == len(expected), f"{again}\n{cell.source}"
        for ours, theirs in zip(outputs, expected, strict=True):
            assert same(ours, theirs), f"{again}\n{cell.source}\n{ours[:2000]}\n{theirs[:2000]}"


def test_a_cell_that_is_stopped_leaves_the_process_usable(tmp_path):
    manager = pytest.importorskip("jupyter_client", reason="jupyter_client is not installed").manager
    pytest.importorskip("ipywidgets", reason="ipywidgets is not installed")
    kernels, client = manager.start_new_kernel(kernel_name="python3", cwd=str(EXAMPLES))
    shown = set()
    try:

        def run(code: str, interrupt_at: str = "") -> str:
            said = []

            def hear(message: dict) -> None:
                shown.update(message["content"].get("data", {}))
                said.append(message["content"].get("text") or message["content"].get("evalue") or "")
                if interrupt_at and interrupt_at in said[-1]:
                    kernels.interrupt_kernel()

            client.execute_interactive(code, timeout=300, output_hook=hear)
            return "".join(said)

        options = f"--device cpu --dataset synthetic --train-size 256 --depth 8 --batch-size 16 --out {tmp_path / 'run'}"
        # A second time too: neither the folder nor the handler of the signal is held on to.
        stopped = run(f"%run train_cifar.py {options} --epochs 1000", "epoch 1/1000")
        assert "stopped; to go on:" in stopped, stopped
        assert "application/vnd.jupyter.widget-view+json" in shown  # the progress bar
        stopped = run(f"%run train_cifar.py --resume {tmp_path / 'run'} --no-progress", "resumed")
        assert "stopped; to go on:" in stopped, stopped
        run("import minires as mr, numpy as np")
        assert "[0.0, 2.0]" in run("print(mr.functional.relu(mr.Tensor([-1.0, 2.0])).numpy().tolist())")
    finally:
        client.stop_channels()
        kernels.shutdown_kernel(now=True)


COPY = """
extern "C" __global__ void copy(const float* x, float* y, int stride) {
    __shared__ float tile[32 * 32];
    tile[threadIdx.x * stride % 1024] = x[threadIdx.x * stride];
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x * stride % 1024];
}

__device__ int unused(int a) { return a; }
"""


def test_counters_show_tables_and_lanes():
    x, y = (mr.Tensor(np.zeros(1024, np.float32)) for _ in range(2))
    with mr.counters() as counted:
        mr.RawKernel(COPY, "copy")((1,), (32,), (x.data, y.data, 32))
    shown = counted._repr_html_()
    assert shown.count("<table>") == 1 and "<details open>" in shown
    assert "unused" not in shown and "y[threadIdx.x] = tile[" in shown  # only functions that ran
    assert "32 sectors, 1024 bytes fetched, 128 used" in shown  # 32 lanes, each in a sector of its own
    assert "32!" in shown and "32 wavefronts" in shown  # and all at one bank
    assert shown.index(">line 4</a>") < shown.index('class="mr-code"')  # the worst lines come first
    assert repr(counted) == str(counted) and "copy" in repr(counted)


def test_functions_are_found_by_their_braces():
    code = """#include <x>
int f(int a);

// of g
template <int N>
__global__ void g(int* a) {
    if (a) { /* } */ a[0] = '}'; }  // }
    /* over two {
       lines { */
}
__device__ int h() { return 1; }
struct S {
    int a;
};

int late;"""
    assert list(display.functions(code.splitlines())) == [(4, 10), (11, 11), (12, 14)]


def test_findings_show_their_lines():
    x = mr.Tensor(np.zeros(32, np.float32))
    with pytest.raises(mr.SanitizerError) as caught, mr.sanitize():
        code = 'extern "C" __global__ void k(float* x) {\n    x[threadIdx.x + 1] = x[0] < 1;\n}'
        mr.RawKernel(code, "k")((1,), (32,), (x.data,))
    shown = caught.value._repr_html_()
    assert "    2      x[threadIdx.x + 1] = x[0] &lt; 1;" in shown and "RawKernel:2" in shown
    assert "<pre></pre>" in mr.SanitizerError("mem", "other.h:300: no such line", "one line")._repr_html_()
    assert "<" not in mr.SanitizerError("init", "a < b")._repr_html_().replace("<p>", "").replace("</p>", "").replace(
        "<pre></pre>", ""
    )


def test_a_profile_is_a_table():
    x = mr.Tensor(np.zeros(32, np.float32))
    with mr.profile() as profile:
        mr.functional.relu(x)
    assert re.search(r"<table><tr><th>launches.*<tr><td>1<td>.*relu_forward", profile._repr_html_())

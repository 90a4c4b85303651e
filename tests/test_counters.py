"""mr.counters() against counts made by hand, and a published measurement."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import minires as mr
from minires import device

LESSON = Path(__file__).parent.parent / "examples" / "lesson6_coalescing.py"
CODE = re.search(r'^CODE = """(.*?)"""', LESSON.read_text(), re.DOTALL | re.MULTILINE)[1]


@pytest.fixture(autouse=True)
def on_the_cpu(current_device, request):
    if current_device != "cpu":
        pytest.skip("on a GPU, NVIDIA's ncu counts")


def count(code, args, grid=(1,), block=(32,), name="k", blocks=None, shared_mem=0):
    """The launch of one kernel, counted, with its arrays afterwards."""
    now = device.current()
    arrays = [now.to_device(a) if isinstance(a, np.ndarray) else a for a in args]
    with mr.counters(blocks) as c:
        mr.RawKernel(code, name)(grid, block, tuple(arrays), shared_mem)
    (launch,) = c.launches
    return launch, [now.to_host(a) for a in arrays if isinstance(a, np.ndarray)]


def copy_of(index, T="float"):  # noqa: N803
    return f"__global__ void k(const {T}* x, {T}* y) {{ const int t = threadIdx.x;\ny[t] = x[{index}]; }}"


FLOATS = np.arange(4096, dtype=np.float32)
GLOBAL = {  # what a warp loads: element, type, array -> sectors a request, and the least
    "neighbours": ("t", "float", FLOATS, 4, 4),
    "neighbours shifted by one": ("t + 1", "float", FLOATS, 5, 4),
    "every second": ("2 * t", "float", FLOATS, 8, 4),
    "a column of a matrix 32 wide": ("32 * t", "float", FLOATS, 32, 4),
    "float4": ("t", "float4", FLOATS.reshape(-1, 4), 16, 16),
    "double": ("t", "double", FLOATS.astype(float), 8, 8),
    "bytes": ("t", "unsigned char", np.zeros(64, np.uint8), 1, 1),
    "one for all": ("7", "float", FLOATS, 1, 1),
}


def skip_what_clang_splits(name):
    if name == "float4" and "clang" in os.environ.get("CXX", ""):
        pytest.skip("clang splits the load of a vector into its elements' before it can be counted: see kernels/README.md")


@pytest.mark.parametrize("name", GLOBAL)
def test_sectors(name):
    skip_what_clang_splits(name)
    index, kind, x, sectors, least = GLOBAL[name]
    launch, _ = count(copy_of(index, kind), (x, np.zeros_like(x)))
    (load,) = [a for a in launch.accesses if a.kind == "load"]
    assert (load.requests, load.lanes, load.sectors, load.sectors_least) == (1, 32, sectors, least)
    assert (load.file, load.line, load.space, load.wavefronts) == ("RawKernel", 2, "global", 0)


SHARED = {  # declaration, what a warp loads -> wavefronts of the one request, and the least
    "a column of [32][32]": ("float s[32][32]", "s[t][5]", 32, 1),
    "a column of [32][33]": ("float s[32][33]", "s[t][5]", 1, 1),
    "a row": ("float s[32][32]", "s[5][t]", 1, 1),
    "one for all": ("float s[32][32]", "s[5][7]", 1, 1),
    "two words of each bank": ("float s[2][32]", "s[t % 2][t]", 1, 1),
    "every second": ("float s[64]", "s[2 * t]", 2, 1),
    "double": ("double s[32]", "(float)s[t]", 2, 2),
    "double, every second": ("double s[64]", "(float)s[2 * t]", 4, 2),
    "float4": ("float4 s[32]", "s[t].x", 4, 4),
}


@pytest.mark.parametrize("name", SHARED)
def test_wavefronts(name):
    skip_what_clang_splits(name)
    declaration, index, wavefronts, least = SHARED[name]
    copy = "const float4 v = s[t];\nconst float w = v.x + v.w;" if name == "float4" else f"const float w = {index};"
    code = (
        f"__global__ void k(float* y) {{ __shared__ {declaration}; const int t = threadIdx.x;\n"
        f"char* p = (char*)s; for (int i = t; i < int(sizeof s); i += 32) p[i] = 0;\n__syncthreads();\n{copy}\ny[t] = w;\n}}"
    )
    launch, _ = count(code, (np.zeros(32, np.float32),))
    (load,) = [a for a in launch.accesses if a.space == "shared" and a.kind == "load"]
    assert (load.requests, load.wavefronts, load.wavefronts_least, load.sectors) == (1, wavefronts, least, 0)


def test_lanes():
    code = "__global__ void k(float* y) { const int t = threadIdx.x;\nif (t % 2) y[t] = 1;\n}"
    launch, _ = count(code, (FLOATS,), block=(64,))
    assert (launch.total("global").requests, launch.total("global").lanes) == (2, 32)
    code = "__global__ void k(float* y) { const int t = threadIdx.x;\nfor (int i = 0; i < t; ++i) y[32 * i + t] = 1;\n}"
    launch, _ = count(code, (FLOATS,))
    assert (launch.total("global").requests, launch.total("global").lanes) == (31, 31 * 32 // 2)


def test_atomics_are_of_their_own_kind():
    code = "__global__ void k(int* y) {\natomicAdd(&y[threadIdx.x / 16], 1);\natomicCAS(y, -1, 3);\natomicAdd(y, 1);\n}"
    launch, (y,) = count(code, (np.zeros(4, np.int32),))
    found = [(a.file, a.line, a.kind, a.requests, a.lanes, a.sectors) for a in launch.accesses]
    assert found == [("RawKernel", line, "atomic", 1, 32, 1) for line in (2, 3, 4)]
    assert y.tolist() == [48, 16, 0, 0]


@pytest.mark.parametrize(("pad", "conflicts"), [(0, 253_952), (1, 0)])
def test_a_transpose_beside_published_counters(pad, conflicts):
    """A V100's counters, as published, say 260,593 and 2,484 conflicts."""
    x = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    arguments = (x, np.zeros_like(x), 512)
    launch, (_, y) = count(CODE, arguments, (16, 16), (32, 8), f"tile<{pad}>")
    np.testing.assert_array_equal(y, x.T)
    of_shared, of_global = launch.total("shared"), launch.total("global")
    assert (launch.blocks_counted, launch.blocks) == (256, 256)
    assert (of_shared.requests, of_shared.wavefronts - of_shared.wavefronts_least) == (16_384, conflicts)
    assert of_global.sectors == of_global.sectors_least == 65_536


def test_dynamic_shared_memory():
    code = (
        "__global__ void k(float* y) { extern __shared__ float s[]; const int t = threadIdx.x;\n"
        "s[t * 32] = y[t];\n__syncthreads();\ny[t] = 2 * s[t * 32];\n}"
    )
    launch, (y,) = count(code, (FLOATS[:32],), shared_mem=4096)
    np.testing.assert_array_equal(y, 2 * FLOATS[:32])
    assert launch.total("shared").wavefronts == 2 * 32
    assert launch.shared_mem == 4096


def test_which_blocks():
    code = "__global__ void k(float* y) {\ny[blockIdx.x * 32 + threadIdx.x] = blockIdx.x;\n}"
    for blocks, counted in ((1, 1), (4, 4), (100, 100), (1000, 128), (None, 128)):
        launch, (y,) = count(code, (FLOATS,), grid=(128,), blocks=blocks)
        assert (launch.blocks_counted, launch.total("global").requests) == (counted, counted)
        np.testing.assert_array_equal(y, np.arange(4096) // 32)
    with pytest.raises(ValueError, match="blocks must be at least 1, or None for all, got 0"), mr.counters(0):
        pass


def test_results_are_those_of_the_cuda_tiling_bit_for_bit(monkeypatch):
    def step():
        mr.manual_seed(0)
        net = mr.resnet.ResNet(mr.resnet.BasicBlock, [1, 1, 1])
        optimizer = mr.optim.SGD(net.parameters(), 0.1, 0.9)
        x = mr.Tensor(np.random.default_rng(0).standard_normal((4, 16, 16, 3)).astype(np.float32))
        loss = mr.functional.cross_entropy(net(x), np.arange(4))
        loss.backward()
        optimizer.step()
        return loss.item(), net.state_dict()

    with mr.counters() as c:
        loss, state = step()
    assert device.current().tiling == "cpu" and device.current().watcher is None
    monkeypatch.setattr(device.current(), "tiling", "cuda")
    expected_loss, expected = step()
    assert loss == expected_loss
    for name, value in expected.items():
        np.testing.assert_array_equal(state[name], value)
    assert any("conv3x3<" in launch.kernel for launch in c.launches)
    assert "conv3x3" in str(c) and "sgd_step" in str(c)


def test_json(tmp_path):
    launch, _ = count(copy_of("t"), (FLOATS, FLOATS.copy()))
    with mr.counters() as c:
        mr.functional.relu(mr.Tensor(FLOATS))
    c.to_json(tmp_path / "c.json")
    (one,) = json.loads((tmp_path / "c.json").read_text())["launches"]
    assert one["kernel"] == "relu_forward" and one["grid"] == [16, 1, 1]
    assert {"file", "line", "space", "kind", "bytes", "requests", "lanes", "sectors", "sectors_least"} < one["accesses"][
        0
    ].keys()
    assert one["accesses"][0]["file"] == "kernels/relu.cu"
    with pytest.raises(ValueError, match="space must be 'global' or 'shared', got 'local'"):
        launch.total("local")


def test_without_a_tool_for_lines_the_message_says_what_to_install(monkeypatch):
    tools, which = ("addr2line", "llvm-symbolizer", "atos"), shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name in tools else which(name))
    with pytest.raises(mr.DeviceError, match="apt install binutils"):
        count(copy_of("t"), (FLOATS, FLOATS.copy()))

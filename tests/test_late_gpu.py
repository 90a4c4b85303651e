"""The late GPU itself: it is no more than CuPy, and it catches what a real one would punish now and then."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import DEVICES, late_gpu_environment

import minires as mr
from minires import device

SEEDS = range(12)
TRAIN = Path(__file__).parent / "late_gpu" / "train.py"


@pytest.fixture(autouse=True)
def once(current_device, request):
    if "late" not in DEVICES or request.node.callspec.params["current_device"] != "late":
        pytest.skip("this is about the late GPU")


@pytest.fixture
def cupy():
    import cupy

    return cupy


def nvrtc():
    from cupy._kernels import nvrtc

    return nvrtc()


# ---------------------------------------------------------------------------------------------------------------------
# It is no CuPy of our dreams

OFFERED = """
import inspect, json, sys
import cupy
from cupy import cuda
from cupy.cuda import compiler, runtime
spaces = {"": cupy, "cuda.": cuda, "cuda.runtime.": runtime, "cuda.compiler.": compiler}
classes = ("ndarray", "RawModule", "cuda.Stream", "cuda.Event", "cuda.Graph", "cuda.MemoryPool", "cuda.MemoryPointer")
found = {}
for prefix, space in spaces.items():
    for name in getattr(space, "__all__", [n for n in vars(space) if not n.startswith("_")]):
        found[prefix + name] = getattr(space, name)
for name in classes:
    for member, value in inspect.getmembers(found[name]):
        if not member.startswith("_"):
            found[f"{name}.{member}"] = value
def parameters(value):
    try:
        return [p for p in inspect.signature(value).parameters if p != "self"]
    except (TypeError, ValueError):
        first = (value.__doc__ or "").strip().split("\\n")[0]
        return first[first.find("(") + 1 : first.rfind(")")].replace("=", " ").replace(",", " ").replace("*", " ").split()
print(json.dumps({name: parameters(value) if callable(value) else None for name, value in found.items()}))
"""
OWN = {"MemoryPointer.bytes_of", "Stream.put", "Stream.queue", "Stream.recording", "Stream.invalid"}
OWN |= {"PinnedMemoryPointer"}  # nobody makes one by hand
OWN |= {"Stream.forbid_while_recording", "Graph.ops", "Event.op", "Event.when", "Stream.null_stream"}


def offered(late: bool) -> dict:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "LD_LIBRARY_PATH")}
    environment |= late_gpu_environment(0) if late else {}
    command = [sys.executable, "-c", OFFERED]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_each_name_and_parameter_exists_in_cupy():
    ours, theirs = offered(True), offered(False)
    assert len(ours) > 60
    own = {f"cuda.{name}" for name in OWN} | {"cuda.runtime.pending", "cuda.runtime.raise_pending", "cuda.runtime.Any"}
    for name, parameters in ours.items():
        if name in own or name.removesuffix(".Any") != name:
            continue
        assert name in theirs, f"CuPy has no {name}"
        if parameters and theirs[name] and not {"args", "kwargs"} & set(theirs[name]):
            missing = [p for p in parameters if p not in theirs[name]]
            assert not missing, f"{name} of CuPy takes {theirs[name]}, not {missing}"


# ---------------------------------------------------------------------------------------------------------------------
# Training


def train(device_name: str, *seeds: int, recorded: bool = False, depth: int = 8, steps: int = 6) -> list[dict]:
    """What came of it, with each seed, all in one process."""
    environment = os.environ | late_gpu_environment(0) | {"MINIRES_DEVICE": device_name}
    command = [sys.executable, str(TRAIN), str(depth), str(steps), "graph" if recorded else "eager", *map(str, seeds)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"seeds {seeds}: {result.stderr}"
    return json.loads(result.stdout)


@pytest.mark.parametrize(("depth", "seeds"), [(8, SEEDS), (20, [0])])  # of 20 layers the optimiser takes two launches
def test_training_has_the_same_bits_whatever_runs_when(depth, seeds):
    first, *others = train("cuda", *seeds, depth=depth)
    (cpu,) = train("cpu", 0, depth=depth)
    for report in others + train("cuda", *seeds, recorded=True, depth=depth):
        for what in ("losses", "state", "accuracy"):
            assert report[what] == first[what]
    if nvrtc() is None:
        assert first["state"] == cpu["state"]
    # NVRTC fuses other multiplications and additions than the C++ compiler does: roundings, which grow from step to step.
    np.testing.assert_allclose(first["losses"][:4], cpu["losses"][:4], rtol=2e-5)


@pytest.mark.parametrize("recorded", [False, True], ids=["eager", "graph"])
def test_steps_allocate_nothing_and_nothing_grows(recorded):
    (report,) = train("cuda", 3, recorded=recorded, steps=50)
    assert report["allocated_after"][3:] == [report["allocated_after"][3]] * 47
    assert report["in_dictionaries"][1] <= report["in_dictionaries"][0]
    assert report["waits_in_a_step"] == 0


# ---------------------------------------------------------------------------------------------------------------------
# It catches mistakes: each as an example that a real GPU would let pass most of the time

ADD = 'extern "C" __global__ void add_to(float* y, const float* x, int n) { for (int i = 0; i < n; ++i) y[i] += x[i]; }'


def wrong_for_some_seed(cupy, run) -> bool:
    """Whether `run(cupy)`, which returns the values that the host reads, gives others than asked for."""
    for seed in range(40):
        cupy.late_seed(seed)
        try:
            got, expected = run(cupy)
        except cupy.cuda.runtime.CUDARuntimeError:
            return True
        if not np.array_equal(got, expected):
            return True
    return False


def table_in_a_dropped_block(cupy, careful: bool):
    """The old _address_table: memory of the current stream's free list, filled through a stream that does not wait."""
    n = 5000  # of a size that nothing else has
    y, ones = cupy.full((n,), 0, np.float32), cupy.full((n,), 1, np.float32)
    dropped = cupy.full((n,), 3, np.float32)
    mr.RawKernel(ADD, "add_to")((1,), (1,), (dropped, ones, n))
    if not careful:
        del dropped  # its block is free, but the kernel has not run
    host = np.arange(n, dtype=np.float32)
    table, side = cupy.empty((n,), np.float32), cupy.cuda.Stream(non_blocking=True)
    pinned = cupy.cuda.alloc_pinned_memory(host.nbytes)
    np.frombuffer(pinned, np.float32, n)[...] = host
    if careful:
        cupy.cuda.get_current_stream().synchronize()
    table.data.copy_from_host_async(pinned.ptr, host.nbytes, stream=side)
    side.synchronize()
    mr.RawKernel(ADD, "add_to")((1,), (1,), (y, table, n))
    return cupy.asnumpy(y), host


def copy_through_a_side_stream(cupy, careful: bool):
    y, side = cupy.full((8,), 1, np.float32), cupy.cuda.Stream(non_blocking=True)
    mr.RawKernel(ADD, "add_to")((1,), (1,), (y, y, 8))
    with side:
        if careful:
            side.wait_event(cupy.cuda.Stream.null_stream.record())
        copy = y.copy()
        got = cupy.asnumpy(copy)
    return got, np.full(8, 2)


def host_copy_in_a_recording(cupy, careful: bool):
    stream, x = cupy.cuda.Stream(non_blocking=True), cupy.full((4,), 1, np.float32)
    cupy.cuda.get_current_stream().synchronize()
    with stream:
        stream.begin_capture()
        if not careful:
            x.set(np.zeros(4, np.float32))
        mr.RawKernel(ADD, "add_to")((1,), (1,), (x, x, 4))
        graph = stream.end_capture()
    graph.launch()
    return cupy.asnumpy(x), np.full(4, 2)


def block_of_a_recording_reused(cupy, careful: bool):
    """What a recording used goes back to the pool that everybody uses, and each replay writes to it."""
    pool = cupy.cuda.MemoryPool()
    stream, x = cupy.cuda.Stream(non_blocking=True), cupy.full((4,), 1, np.float32)
    cupy.cuda.get_current_stream().synchronize()
    with cupy.cuda.using_allocator(pool.malloc), stream:
        stream.begin_capture()
        inside = x.copy()
        mr.RawKernel(ADD, "add_to")((1,), (1,), (inside, x, 4))
        graph = stream.end_capture()
        del inside
    with cupy.cuda.using_allocator(None if careful else pool.malloc), stream:
        other = cupy.full((4,), 7, np.float32)
        stream.synchronize()
        graph.launch()
        return cupy.asnumpy(other), np.full(4, 7)


def missing_wait(cupy, careful: bool):
    """Pinned memory is read when the copy runs."""
    y, pinned = cupy.full((4,), 0, np.float32), cupy.cuda.alloc_pinned_memory(16)
    values = np.frombuffer(pinned, np.float32, 4)
    values[...] = 1
    y.data.copy_from_host_async(pinned.ptr, 16)
    if careful:
        cupy.cuda.get_current_stream().synchronize()
    values[...] = 2
    return cupy.asnumpy(y), np.full(4, 1)


MISTAKES = [
    table_in_a_dropped_block,
    copy_through_a_side_stream,
    host_copy_in_a_recording,
    block_of_a_recording_reused,
    missing_wait,
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda f: f.__name__)
def test_a_mistake_is_caught_and_its_cure_is_not(cupy, mistake):
    assert wrong_for_some_seed(cupy, lambda c: mistake(c, careful=False))
    gc.collect()
    assert not wrong_for_some_seed(cupy, lambda c: mistake(c, careful=True))


def test_capture_rules(cupy):
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="the default stream cannot record"):
        cupy.cuda.get_current_stream().begin_capture()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream, pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="StreamCaptureUnsupported"):
        stream.begin_capture()
        cupy.full((3,), 1, np.float32).get()
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="StreamCaptureInvalidated"):
        stream.end_capture()


def test_arrays_are_no_numpy_arrays(cupy):
    x = cupy.full((3,), 2, np.float32)
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(x)
    assert float(x[1:2]) == 2 and int(cupy.full((), 3, np.int32)) == 3


def test_labels_out_of_range_are_reported_when_the_host_reads():
    logits = mr.Tensor(np.zeros((3, 4), np.float32))
    labels = device.current().to_device(np.array([0, 7, 1], np.int32))
    loss = mr.functional.cross_entropy(logits, labels)
    with pytest.raises(ValueError, match=r"target\[1\] is 7, but with 4 classes labels lie in 0 .. 3"):
        loss.item()
    assert np.isfinite(mr.functional.cross_entropy(logits, np.array([0, 1, 2])).item())

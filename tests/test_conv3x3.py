import numpy as np
import pytest
import reference
from reference import assert_close

import minires as mr
from minires import device, functional, tiles

# Each pair of channels and each tile of pixels is an instance, which must be compiled: of both there are only a few.
GEOMETRIES = [  # batch, in and out channels, image, kernel, stride, padding
    (2, 3, 16, (32, 32), (3, 3), (1, 1), (1, 1)),  # whose input gradient has no whole vectors
    (3, 16, 16, (9, 33), (3, 3), (1, 1), (1, 1)),  # one column more than a tile: it has neighbours in both directions
    (2, 16, 16, (31, 30), (3, 3), (1, 1), (2, 0)),
    (1, 64, 64, (8, 9), (3, 3), (1, 1), (1, 1)),
    (2, 16, 16, (33, 31), (3, 3), (2, 2), (1, 1)),
    (1, 64, 64, (17, 18), (3, 3), (2, 2), (1, 1)),
    (2, 12, 20, (11, 19), (3, 3), (1, 1), (1, 1)),  # channels that are no power of two
    (2, 12, 20, (11, 19), (3, 3), (2, 2), (1, 1)),
    (2, 12, 20, (11, 19), (3, 3), (2, 2), (0, 2)),
    (2, 8, 6, (9, 7), (3, 3), (1, 1), (1, 1)),  # whose result has no whole vectors
    (2, 8, 6, (9, 7), (3, 3), (2, 2), (1, 1)),
    (1, 1, 1, (1, 1), (1, 1), (1, 1), (0, 0)),
    (1, 20, 130, (8, 8), (3, 3), (1, 1), (1, 1)),  # wider than the fast kernels take
    (1, 2, 3, (3, 3), (3, 3), (1, 1), (0, 0)),
    (2, 4, 5, (7, 6), (2, 3), (2, 1), (1, 0)),
    (2, 4, 5, (7, 7), (5, 5), (3, 3), (4, 4)),
    (3, 8, 6, (9, 9), (1, 1), (2, 2), (0, 0)),
    (2, 3, 4, (6, 4), (6, 4), (1, 1), (0, 0)),
]


@pytest.fixture(params=GEOMETRIES, ids=str)
def case(request, rng, dtype):
    n, c, o, image, kernel, stride, padding = request.param
    x = rng.standard_normal((n, *image, c)).astype(dtype)
    weight = rng.standard_normal((*kernel, c, o)).astype(dtype)
    bias = rng.standard_normal(o).astype(dtype)
    return x, weight, bias, stride, padding


def forward_and_gradients(case, dtype, rng, *algorithms):
    """The result and the gradients by each algorithm, which must be as the reference has them."""
    x, weight, bias, stride, padding = case
    y = reference.conv2d(x, weight, stride, padding) + bias
    dy = rng.standard_normal(y.shape).astype(dtype)
    expected = y, *reference.conv2d_gradients(x, weight, dy, stride, padding), dy.sum((0, 1, 2), np.float64)
    results = []
    for algorithm in algorithms:
        tensors = [mr.Tensor(a, requires_grad=True) for a in (x, weight, bias)]
        y = mr.functional.conv2d(*tensors, stride, padding, algorithm)
        y.backward(dy)
        results.append([t.numpy() for t in (y, *(t.grad for t in tensors))])
        for found, right in zip(results[-1], expected, strict=True):
            assert_close(found, right, dtype)
    return results


def test_forward_and_gradients_by_the_fast_and_the_readable_kernels(case, dtype, rng):
    results = forward_and_gradients(case, dtype, rng, "auto", "im2col")
    limit = 1e-5 if dtype == np.float32 else 1e-12
    for fast, readable in zip(*results, strict=True):
        assert np.abs(fast - readable).max() <= limit * np.abs(readable).max()


@pytest.mark.parametrize("tiling", tiles.TABLES)
@pytest.mark.parametrize(("c", "o"), [(3, 16), (12, 20)])
@pytest.mark.parametrize("stride", [1, 2])
def test_filters_gradient_of_several_tiles_a_chunk(rng, dtype, stride, c, o, tiling, monkeypatch):
    """Chunks of several tiles each, the last of which has fewer."""
    now = device.current()
    monkeypatch.setattr(now, "tiling", tiling)
    n, size = 5, (19, 21)
    oh, ow = ((v - 1) // stride + 1 for v in size)
    x, dy = rng.standard_normal((n, *size, c)).astype(dtype), rng.standard_normal((n, oh, ow, o)).astype(dtype)
    monkeypatch.setattr(tiles.table(), "blocks", 1)
    name, grid, block, total = tiles.weight(n, c, o, (oh, ow), stride, np.dtype(dtype))
    chunk = total // 3 + 1
    chunks = -(-total // chunk)
    assert chunks > 1 and chunks * chunk > total
    parts, d_weight = now.empty((chunks, 3, 3, c, o), dtype), now.empty((3, 3, c, o), dtype)
    arrays = now.to_device(x), now.to_device(dy), parts, None, None
    device.launch(name, (*grid[:2], chunks), block, *arrays, n, c, *size, o, oh, ow, 1, 1, chunk)
    functional._column_sums(parts, chunks, d_weight)
    expected = reference.conv2d_gradients(x, np.zeros((3, 3, c, o)), dy, (stride, stride), (1, 1))[1]
    assert_close(now.to_host(d_weight), expected, dtype)


@pytest.mark.parametrize("tiling", tiles.TABLES)
@pytest.mark.parametrize("wanted", [True, False], ids=["with the gradient", "alone"])
@pytest.mark.parametrize(("c", "o"), [(1, 1), (12, 20), (20, 12)])
def test_turned_filters(rng, dtype, c, o, wanted, tiling, monkeypatch):
    now, w = device.current(), rng.standard_normal((3, 3, c, o)).astype(dtype)
    monkeypatch.setattr(now, "tiling", tiling)
    turned, zeros = now.empty((3, 3, o, c), dtype), [now.to_device(np.zeros((1, 2, 2, k), dtype)) for k in (c, o)]
    geometry = (2, 2, 3, 3, 2, 2, 1, 1, 1, 1)
    gradient = functional._conv3x3_weight_gradient(*zeros, now.to_device(w), turned, geometry, wanted)
    np.testing.assert_array_equal(now.to_host(turned), w[::-1, ::-1].transpose(0, 1, 3, 2))
    assert (gradient is not None) == wanted


@pytest.mark.parametrize("trained", ["x", "weight"])
def test_of_two_gradients_only_the_one_that_is_wanted(rng, dtype, trained):
    tensors = {
        "x": mr.Tensor(rng.standard_normal((2, 8, 8, 16)).astype(dtype)),
        "weight": mr.Tensor(rng.standard_normal((3, 3, 16, 16)).astype(dtype)),
    }
    dy = rng.standard_normal((2, 8, 8, 16)).astype(dtype)
    tensors[trained].requires_grad = True
    mr.functional.conv2d(*tensors.values(), None, 1, 1).backward(dy)
    dx, d_weight = reference.conv2d_gradients(*(t.numpy() for t in tensors.values()), dy, (1, 1), (1, 1))
    assert_close(tensors[trained].grad, {"x": dx, "weight": d_weight}[trained], dtype)
    assert all(t.grad is None for name, t in tensors.items() if name != trained)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("algorithm", ["auto", "im2col"])
def test_a_gradient_is_added_to_what_is_known_of_it(rng, dtype, stride, algorithm):
    """x is read by two operations: the first one's gradient is there when the convolution's is computed, or after it."""
    x = mr.Tensor(rng.standard_normal((2, 8, 8, 16)).astype(dtype), requires_grad=True)
    weights = [mr.Tensor(rng.standard_normal((3, 3, 16, 16)).astype(dtype)) for _ in range(2)]
    dy = mr.Tensor(rng.standard_normal((2, 8 // stride, 8 // stride, 16)).astype(dtype))
    alone = []
    for weight in weights:
        x.grad = None
        mr.functional.conv2d(x, weight, None, stride, 1, algorithm).backward(dy)
        alone.append(x.grad.numpy())
    x.grad = None
    both = [mr.functional.conv2d(x, weight, None, stride, 1, algorithm) for weight in weights]
    (both[0] + both[1]).backward(dy)
    assert_close(x.grad, alone[0].astype(np.float64) + alone[1], dtype)


def launched_kernels(*arguments) -> set[str]:
    tensors = [mr.Tensor(a, requires_grad=True) for a in arguments[:2]]
    with mr.profile() as profile:
        y = mr.functional.conv2d(*tensors, None, *arguments[2:])
        y.backward(np.ones(y.shape, np.float32))
    return set(profile.kernels)


def bases(names: set[str]) -> set[str]:
    return {name.split("<")[0] for name in names}


def test_which_kernels_run():
    if device.is_watched():
        pytest.skip("the same ones")
    x, weight = np.ones((1, 32, 32, 16), np.float32), np.ones((3, 3, 16, 16), np.float32)
    assert bases(launched_kernels(x, weight, 1, 1)) == {"conv3x3", "conv3x3_weight", "column_sums"}
    strided = {"conv3x3", "conv3x3_strided_gradient", "conv3x3_weight", "column_sums"}
    assert bases(launched_kernels(x, weight, 2, 1)) == strided
    assert "col2im" in bases(launched_kernels(x, weight, 2, 0))
    readable = bases(launched_kernels(x, weight, 1, 1, "im2col"))
    assert readable == {"im2col", "col2im", "gemm_blocked", "transpose", "column_sums"}
    assert "im2col" in bases(launched_kernels(x, weight, 3, 1))
    wide = np.ones((3, 3, 16, 68), np.float32)
    assert bases(launched_kernels(x, wide, 1, 1)) == {"im2col", "col2im", "gemm_blocked", "transpose", "column_sums"}
    pointwise = bases(launched_kernels(x, np.ones((1, 1, 16, 16), np.float32)))
    assert pointwise == {"col2im", "gemm_blocked", "transpose", "column_sums"}  # x is its own columns


def test_banks_of_shared_memory(current_device):
    """Of the gradient with stride 2, whose share of a step is too small for test_inspect_kernel.py."""
    if current_device != "cpu" or device.is_watched():
        pytest.skip("counters are of the cpu device")
    x, w = mr.Tensor(np.zeros((4, 32, 32, 16), np.float32), requires_grad=True), mr.Tensor(np.zeros((3, 3, 16, 32), np.float32))
    with mr.counters() as counted:
        mr.functional.conv2d(x, w, None, 2, 1).backward(np.zeros((4, 16, 16, 32), np.float32))
    shared = [launch.total("shared") for launch in counted.launches if "strided_gradient" in launch.kernel]
    assert [s.wavefronts <= 1.05 * s.wavefronts_least for s in shared] == [True]


@pytest.mark.no_late
@pytest.mark.parametrize("tiling", ["cuda"])
def test_the_tiles_of_a_gpu(case, dtype, rng, tiling, monkeypatch):
    monkeypatch.setattr(device.current(), "tiling", tiling)
    forward_and_gradients(case, dtype, rng, "auto")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": (2, 5, 5, 4)}, ValueError, "4 channels .* takes 3: [^:]*$"),
        ({"x": (2, 3, 5, 5)}, ValueError, r"looks like N x C x H x W, .* transpose it by \(0, 2, 3, 1\)"),
        ({"weight": (4, 3, 2, 2)}, ValueError, r"looks like O x C x KH x KW, .* transpose it by \(2, 3, 1, 0\)"),
        ({"x": (3, 5, 5)}, ValueError, r"x must have the shape \(N, H, W, C\), got \(3, 5, 5\)"),
        ({"x": (0, 5, 5, 3)}, ValueError, "x is empty"),
        ({"weight": (4, 3, 3)}, ValueError, "weight must have the shape"),
        ({"weight": (8, 3, 3, 4)}, ValueError, r"kernel \(8, 3\) is larger than the padded image \(7, 7\)"),
        ({"bias": (5,)}, ValueError, r"bias must have the shape \(4,\)"),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"stride": 1.5}, TypeError, "stride must be an integer"),
        ({"stride": (1, 2, 3)}, TypeError, "stride must be an integer or a pair"),
        ({"padding": -1}, ValueError, "padding must be at least 0, got -1"),
        ({"padding": True}, TypeError, "padding must be an integer"),
        ({"algorithm": "fft"}, ValueError, "algorithm must be 'auto' or 'im2col', got 'fft'"),
        ({"weight_dtype": np.float64}, TypeError, "x is float32 but weight is float64"),
    ],
    ids=str,
)
def test_bad_input(change, error, words):
    options = {"stride": 1, "padding": 1, "algorithm": "auto"} | change
    x = mr.Tensor(np.zeros(options.pop("x", (2, 5, 5, 3)), np.float32))
    weight = mr.Tensor(np.zeros(options.pop("weight", (3, 3, 3, 4)), options.pop("weight_dtype", np.float32)))
    bias = mr.Tensor(np.zeros(options.pop("bias", (4,)), weight.dtype))
    with pytest.raises(error, match=words):
        mr.functional.conv2d(x, weight, bias, **options)

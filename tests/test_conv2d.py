import numpy as np
import pytest
import reference
from reference import assert_close

import minires as mr
from minires import device, tiles

GEOMETRIES = [  # batch, in and out channels, image, kernel, stride, padding
    (1, 1, 1, (1, 1), (1, 1), (1, 1), (0, 0)),
    (2, 3, 4, (5, 7), (3, 3), (1, 1), (1, 1)),
    (2, 3, 16, (32, 32), (3, 3), (1, 1), (1, 1)),
    (3, 16, 16, (9, 33), (3, 3), (1, 1), (1, 1)),
    (2, 17, 33, (17, 16), (3, 3), (1, 1), (1, 1)),
    (5, 20, 65, (8, 8), (3, 3), (1, 1), (1, 1)),
    (3, 2, 40, (7, 8), (3, 3), (1, 1), (1, 1)),  # where a vector is two rows, the last one has no second
    (2, 16, 32, (32, 32), (3, 3), (2, 2), (1, 1)),
    (3, 33, 64, (15, 13), (3, 3), (2, 2), (1, 1)),
    (2, 3, 13, (33, 33), (3, 3), (2, 2), (1, 1)),  # one row and one column more than tiles; no whole slice of O
    (1, 2, 20, (3, 32), (3, 3), (1, 1), (1, 1)),  # each fast tile with neighbours in both directions
    (1, 2, 64, (3, 48), (3, 3), (1, 1), (1, 1)),
    (1, 2, 128, (3, 24), (3, 3), (1, 1), (1, 1)),
    (1, 20, 64, (3, 64), (3, 3), (2, 2), (1, 1)),
    (1, 64, 2, (3, 48), (3, 3), (2, 2), (1, 1)),
    (1, 3, 128, (3, 16), (3, 3), (2, 2), (1, 1)),
    (2, 5, 6, (8, 9), (3, 3), (2, 2), (0, 2)),
    (2, 5, 6, (6, 5), (3, 3), (1, 1), (2, 0)),
    (1, 2, 3, (3, 3), (3, 3), (1, 1), (0, 0)),
    (2, 4, 5, (7, 6), (2, 3), (2, 1), (1, 0)),
    (2, 4, 5, (7, 7), (5, 5), (3, 3), (4, 4)),
    (3, 8, 6, (9, 9), (1, 1), (2, 2), (0, 0)),
    (2, 3, 4, (6, 4), (6, 4), (1, 1), (0, 0)),
]


@pytest.fixture(params=GEOMETRIES, ids=str)
def case(request, rng, dtype):
    n, c, o, image, kernel, stride, padding = request.param
    x = rng.standard_normal((n, c, *image)).astype(dtype)
    weight = rng.standard_normal((o, c, *kernel)).astype(dtype)
    bias = rng.standard_normal(o).astype(dtype)
    return x, weight, bias, stride, padding


def forward_and_gradients(case, dtype, rng, *algorithms):
    """The result and the gradients by each algorithm, which must be as the reference has them."""
    x, weight, bias, stride, padding = case
    y = reference.conv2d(x, weight, stride, padding) + bias[:, None, None]
    dy = rng.standard_normal(y.shape).astype(dtype)
    expected = y, *reference.conv2d_gradients(x, weight, dy, stride, padding), dy.sum((0, 2, 3), np.float64)
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


WEIGHT_TILES = [
    (name, stride, i) for name, t in tiles.TABLES.items() for stride in t.weight for i in range(len(t.weight[stride]))
]


@pytest.mark.parametrize(("name", "stride", "i"), WEIGHT_TILES)
def test_weight_gradient_of_several_tiles_a_chunk(rng, dtype, name, stride, i):
    """Three chunks of several tiles each, the last of which has fewer or none."""
    table = tiles.TABLES[name]
    tile = table.weight[stride][i]
    n, c, o, size, chunks = 3, 5, 18, (35, 37), 3 if tile.columns > 8 else 4
    oh, ow = ((v - 1) // stride + 1 for v in size)
    x, dy = rng.standard_normal((n, c, *size)).astype(dtype), rng.standard_normal((n, o, oh, ow)).astype(dtype)
    now = device.current()
    parts, d_weight = now.empty((chunks, c, 9, o), dtype), now.empty((o, c, 3, 3), dtype)
    arrays = now.to_device(x), now.to_device(dy), parts
    kernel = f"conv3x3_weight<{tile.arguments}, {stride}>"
    device.launch(kernel, (1, 2, chunks), (tile.threads,), *arrays, n, c, *size, o, oh, ow, 1, 1)
    run = table.sum_run
    device.launch(f"conv3x3_weight_sum<{run}>", (-(-c * 9 * o // run // 256),), (256,), parts, d_weight, chunks, c, o)
    expected = reference.conv2d_gradients(x, np.zeros((o, c, 3, 3)), dy, (stride, stride), (1, 1))[1]
    assert_close(now.to_host(d_weight), expected, dtype)


def launched_kernels(*arguments) -> set[str]:
    tensors = [mr.Tensor(a, requires_grad=True) for a in arguments[:2]]
    with mr.profile() as profile:
        y = mr.functional.conv2d(*tensors, None, *arguments[2:])
        y.backward(np.ones(y.shape, np.float32))
    return set(profile.kernels)


def test_which_kernels_run():
    x, weight = np.ones((1, 16, 32, 32), np.float32), np.ones((16, 16, 3, 3), np.float32)
    fast = launched_kernels(x, weight, 1, 1)
    assert {name.split("<")[0] for name in fast} == {"conv3x3", "conv3x3_weight", "conv3x3_weight_sum"}
    assert len(fast) == 4  # the convolution turned, too
    strided = {name.split("<")[0] for name in launched_kernels(x, weight, 2, 1)}
    assert strided == {"conv3x3", "conv3x3_strided_gradient", "conv3x3_weight", "conv3x3_weight_sum"}
    assert "col2im" in launched_kernels(x, weight, 2, 0)
    readable = launched_kernels(x, weight, 1, 1, "im2col")
    assert {"im2col", "col2im", "sum_over_batch"} < readable
    assert not any(name.startswith("conv3x3") for name in readable)
    assert "im2col" in launched_kernels(x, weight, 3, 1)


def test_the_tiles_of_the_other_device(case, dtype, rng, monkeypatch):
    """What the table of a GPU makes of the kernels, and on a GPU that of a CPU."""
    monkeypatch.setattr(device.current(), "tiling", "cuda" if device.current().tiling == "cpu" else "cpu")
    forward_and_gradients(case, dtype, rng, "auto")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": (2, 4, 5, 5)}, ValueError, "4 channels .* takes 3"),
        ({"x": (3, 5, 5)}, ValueError, r"x must have the shape \(N, C, H, W\), got \(3, 5, 5\)"),
        ({"x": (0, 3, 5, 5)}, ValueError, "x is empty"),
        ({"weight": (4, 3, 3)}, ValueError, "weight must have the shape"),
        ({"weight": (4, 3, 8, 3)}, ValueError, r"kernel \(8, 3\) is larger than the padded image \(7, 7\)"),
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
    x = mr.Tensor(np.zeros(options.pop("x", (2, 3, 5, 5)), np.float32))
    weight = mr.Tensor(np.zeros(options.pop("weight", (4, 3, 3, 3)), options.pop("weight_dtype", np.float32)))
    bias = mr.Tensor(np.zeros(options.pop("bias", (4,)), weight.dtype))
    with pytest.raises(error, match=words):
        mr.functional.conv2d(x, weight, bias, **options)

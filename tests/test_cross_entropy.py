import numpy as np
import pytest
from reference import log_softmax, smoothed_targets

import minires as mr
from minires import device


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (7, 10), (300, 10), (5, 1000)], ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_loss_and_gradient(rng, dtype, shape, smoothing):
    n, c = shape
    logits = mr.Tensor(rng.standard_normal(shape).astype(dtype) * 3, requires_grad=True)
    labels = rng.integers(0, c, n)
    loss = mr.functional.cross_entropy(logits, labels, smoothing)
    targets, logp = smoothed_targets(labels, c, smoothing), log_softmax(logits.numpy())
    expected = -(targets * logp).sum() / n
    assert abs(loss.item() - expected) <= (1e-5 if dtype == np.float32 else 1e-13) * max(1, abs(expected))
    loss.backward(np.array(1.5, dtype))
    gradient = 1.5 * (np.exp(logp) - targets) / n
    np.testing.assert_allclose(logits.grad.numpy(), gradient, rtol=0, atol=(1e-6 if dtype == np.float32 else 1e-15))


def test_large_logits_do_not_overflow(dtype):
    logits = mr.Tensor(np.array([[1e4, -1e4, 0], [-1e4, 1e4, 1e4], [0, 1e4, 0]], dtype))
    loss = mr.functional.cross_entropy(logits, np.array([0, 1, 1]))
    assert loss.item() == pytest.approx(np.log(2) / 3, rel=1e-6)


@pytest.mark.parametrize("integer", [np.int8, np.uint8, np.int32, np.int64])
def test_integer_types(integer, rng):
    logits = mr.Tensor(rng.standard_normal((4, 5)))
    labels = np.array([0, 4, 2, 1])
    expected = mr.functional.cross_entropy(logits, labels.astype(np.int32)).item()
    assert mr.functional.cross_entropy(logits, labels.astype(integer)).item() == expected


@pytest.mark.parametrize(
    ("labels", "error", "words"),
    [
        (np.array([0, 3, 1]), ValueError, r"target\[1\] is 3, .* labels lie in 0 .. 2"),
        (np.array([0, 1, -1]), ValueError, r"target\[2\] is -1"),
        (np.array([2**32, 0, 1]), ValueError, r"target\[0\] is 4294967296"),
        (np.array([0.0, 1.0, 2.0]), TypeError, "integer array, got float64"),
        (np.array([0, 1]), ValueError, r"must have the shape \(3,\)"),
        (5, TypeError, "integer array, got int"),
    ],
    ids=str,
)
def test_bad_labels(labels, error, words):
    with pytest.raises(error, match=words):
        mr.functional.cross_entropy(mr.Tensor(np.zeros((3, 3), np.float32)), labels)


@pytest.mark.parametrize("first", [([3, 0], [0, 3, 3]), ([2, 0, 7, 8], [2, 7, 3]), ([0, -1], [1, -1, 3])], ids=str)
def test_of_bad_labels_on_the_device_the_first_is_kept(first):
    now = device.current()
    bad = now.to_device(np.full(3, -1, np.int32))
    for labels, expected in (([0, 2, 1], [-1, -1, -1]), first, ([0, 9], first[1])):
        labels = now.to_device(np.array(labels, np.int32))
        device.launch("find_bad_label", (1,), (1,), labels, bad, len(labels), 3, scalar=np.dtype(np.float32))
        assert now.to_host(bad).tolist() == expected


def test_bad_smoothing():
    with pytest.raises(ValueError, match="label_smoothing must lie in 0 .. 1, got nan"):
        mr.functional.cross_entropy(mr.Tensor(np.zeros((1, 3), np.float32)), np.array([0]), float("nan"))


def test_count_correct(rng, dtype):
    logits = rng.integers(-2, 3, (1000, 4)).astype(dtype)  # many ties: the first of the largest counts
    labels = rng.integers(0, 4, 1000)
    assert mr.functional.count_correct(mr.Tensor(logits), labels) == (logits.argmax(1) == labels).sum()


def test_running_totals(rng, dtype):
    """In double: a hundred batches of different sizes, and what stands behind the two totals is left alone."""
    now = device.current()
    totals, expected = now.to_device(np.array([0.0, 0.0, -1.0])), np.zeros(2)
    for images in range(1, 101):
        loss, correct = rng.random(1).astype(dtype), rng.integers(0, images + 1, 1).astype(np.int32)
        device.launch("add_to_totals", (1,), (1,), now.to_device(loss), now.to_device(correct), totals, images)
        expected += float(loss[0]) * images, correct[0]
    np.testing.assert_allclose(now.to_host(totals), [*expected, -1], rtol=1e-14)


def test_two_sums_over_a_block_one_after_the_other(rng):
    """A warp that is fast must not write its second sum while a slow one reads the first: block_sum's barrier in front."""
    code = """#include "common.cuh"
    extern "C" __global__ void sums(const float* x, float* y) {
        const float first = block_sum(x[threadIdx.x]), second = block_sum(first * x[threadIdx.x]);
        y[threadIdx.x] = second;
    }"""
    x = rng.standard_normal(128).astype(np.float32)
    now = device.current()
    y = now.empty((128,), np.float32)
    mr.RawKernel(code, "sums")((1,), (128,), (now.to_device(x), y))
    np.testing.assert_allclose(now.to_host(y), x.astype(float).sum() ** 2, rtol=1e-4)

import numpy as np
import pytest

import minires as mr


@pytest.mark.parametrize("shape", [(1,), (257,), (3, 5, 7), (2, 3, 32, 32)], ids=str)
def test_relu(rng, dtype, shape):
    x = mr.Tensor(rng.standard_normal(shape).astype(dtype), requires_grad=True)
    y = mr.functional.relu(x)
    np.testing.assert_array_equal(y.numpy(), np.maximum(x.numpy(), 0))
    dy = rng.standard_normal(shape).astype(dtype)
    y.backward(dy)
    np.testing.assert_array_equal(x.grad.numpy(), np.where(x.numpy() > 0, dy, 0))


def test_special_values(dtype):
    x = mr.Tensor(np.array([-0.0, 0.0, np.inf, -np.inf, np.nan], dtype), requires_grad=True)
    y = mr.functional.relu(x)
    np.testing.assert_array_equal(y.numpy(), [0, 0, np.inf, 0, np.nan])
    assert not np.signbit(y.numpy()[:2]).any()
    y.backward(np.ones(5, dtype))
    np.testing.assert_array_equal(x.grad.numpy(), [0, 0, 1, 0, 1])


def test_empty():
    with pytest.raises(ValueError, match="empty"):
        mr.functional.relu(mr.Tensor(np.ones((0, 3), np.float32)))

import gc
import weakref

import numpy as np
import pytest

import minires as mr

F = mr.functional


def test_data_is_copied_and_non_contiguous_arrays_are_read_right(dtype):
    source = np.arange(12).reshape(3, 4).astype(dtype)
    for view in (source, source.T, source[::2, ::-1], np.asfortranarray(source)):
        tensor = mr.Tensor(view)
        np.testing.assert_array_equal(tensor.numpy(), view)
        before = view.copy()
        view[0, 0] += 1
        np.testing.assert_array_equal(tensor.numpy(), before)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (np.zeros(3, np.int32), "float32 or float64, got int32"),
        (np.zeros(3, np.float16), "got float16"),
        ("abc", "needs a NumPy array .* got builtins.str"),
        (None, "got builtins.NoneType"),
    ],
    ids=str,
)
def test_bad_data(data, words):
    with pytest.raises(TypeError, match=words):
        mr.Tensor(data)


def test_lists_are_float32():
    assert mr.Tensor([[1.0, 2.0]]).dtype == np.float32
    assert mr.Tensor(2.5).item() == 2.5


def test_a_tensor_used_twice_gets_both_gradients():
    x = mr.Tensor([1.0, -2.0], requires_grad=True)
    y = x + x
    (y + F.relu(x)).backward(np.array([1, 10], np.float32))
    np.testing.assert_array_equal(x.grad.numpy(), [3, 20])


def test_gradients_accumulate_over_backward_calls_until_cleared():
    x = mr.Tensor([1.0], requires_grad=True)
    for expected in (1, 2):
        F.relu(x).backward()
        assert x.grad.item() == expected


def test_accumulation_does_not_change_a_gradient_handed_to_several_inputs():
    """add passes one array to both inputs: adding to one must not add to the other."""
    a, b = (mr.Tensor([1.0], requires_grad=True) for _ in range(2))
    (a + b).backward()
    F.relu(a).backward()
    assert (a.grad.item(), b.grad.item()) == (2, 1)


def test_no_grad():
    x = mr.Tensor([1.0], requires_grad=True)
    with mr.no_grad():
        assert not F.relu(x).requires_grad
    assert F.relu(x).requires_grad
    with pytest.raises(RuntimeError, match="does not require a gradient"), mr.no_grad():
        F.relu(x).backward()


def test_detach_and_reshape():
    x = mr.Tensor(np.arange(6, dtype=np.float32), requires_grad=True)
    assert not x.detach().requires_grad
    y = x.reshape(2, -1)
    assert y.shape == (2, 3)
    y.backward(np.arange(6, dtype=np.float32).reshape(2, 3))
    np.testing.assert_array_equal(x.grad.numpy(), np.arange(6))
    with pytest.raises(ValueError, match=r"shape \(6,\) to \(4, 2\)"):
        x.reshape(4, 2)


def test_errors_of_backward():
    x = mr.Tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(ValueError, match=r"shape \(2,\) needs a gradient"):
        F.relu(x).backward()
    with pytest.raises(ValueError, match=r"gradient has the shape \(3,\), the tensor \(2,\)"):
        F.relu(x).backward(np.ones(3, np.float32))
    with pytest.raises(TypeError, match="gradient is float64"):
        F.relu(x).backward(np.ones(2))
    with pytest.raises(ValueError, match="one element"):
        x.item()
    y = F.relu(x)
    y.backward(np.ones(2, np.float32))
    with pytest.raises(RuntimeError, match="second time through relu"):
        y.backward(np.ones(2, np.float32))


def test_a_shared_part_of_two_graphs_cannot_be_used_twice():
    x = mr.Tensor([1.0], requires_grad=True)
    shared = F.relu(x)
    first, second = F.relu(shared), F.relu(shared)
    first.backward()
    with pytest.raises(RuntimeError, match="second time"):
        second.backward()


def test_backward_frees_what_the_graph_kept():
    x = mr.Tensor([1.0], requires_grad=True)
    y = F.relu(F.relu(x))
    middle = weakref.ref(y.node.inputs[0])
    y.backward()
    gc.collect()
    assert middle() is None


def test_a_deep_graph_does_not_overflow_the_stack():
    x = y = mr.Tensor([1.0], requires_grad=True)
    for _ in range(3000):
        y = F.relu(y)
    y.backward()
    assert x.grad.item() == 1


def test_only_functions_of_tensors():
    with pytest.raises(TypeError, match="x must be a minires.Tensor, got ndarray"):
        F.relu(np.ones(3, np.float32))
    with pytest.raises(TypeError, match="b must be a minires.Tensor, got int"):
        mr.Tensor([1.0]) + 1


def test_tensors_show_their_values():
    x = mr.Tensor(np.array([[1.5, -2], [0.25, 3]], np.float32), requires_grad=True)
    numbers = "[[ 1.5 , -2.  ],\n        [ 0.25,  3.  ]]"
    assert repr(x) == f"Tensor({numbers}, shape=(2, 2), dtype=float32, requires_grad=True)"
    long = repr(mr.Tensor(np.arange(100_000, dtype=np.float64)))
    assert len(long) < 200 and "..., " in long and "shape=(100000,), dtype=float64" in long

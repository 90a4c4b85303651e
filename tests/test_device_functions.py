"""Every function of CUDA's Math API on the CPU device, against what NVIDIA's own library computes."""

import numpy as np
import pytest
from device_functions import allowed, compute, expected, inputs, numbers, prototypes, read

import minires as mr

pytestmark = pytest.mark.no_late  # it made the table


def wrong(prototype: str, ours: np.ndarray, theirs: np.ndarray) -> str | None:
    """The first result that differs by more than it may, in words."""
    returned, _, parameters = read(prototype)
    kinds = [returned, *(p.removesuffix(" *") for p in parameters if p.endswith("*") and not p.startswith("const "))]
    for column, kind in enumerate(kinds):
        a, b = ours[:, column], theirs[:, column]
        if kind in ("float", "double"):
            a, b = numbers(a, kind), numbers(b, kind)
            with np.errstate(invalid="ignore", divide="ignore"):
                limit = allowed(prototype, kind, b)
                far = ~((a == b) | (np.isnan(a) & np.isnan(b)) | (abs(a - b) <= limit) | np.isinf(limit))
        else:
            far = a != b
            if "remquo" in prototype:  # three bits of the quotient, and none where there is no quotient
                far &= ((a ^ b) % 8 != 0) & ~np.isnan(numbers(theirs[:, 0], returned))
        if kind != "void" and far.any():
            i = int(np.argmax(far))
            return f"{prototype}, result {column} of {[hex(w) for w in inputs(prototype)[i].tolist()]}: {a[i]}, a GPU's {b[i]}"
    return None


def test_each_function_gives_what_a_gpu_gives():
    theirs, ours = expected(), compute(prototypes())
    assert len(theirs) > 540 and all(words.any() for words in theirs.values())
    assert not [found for p in theirs if (found := wrong(p, ours[p], theirs[p]))]


def test_a_wrong_result_is_noticed():
    for prototype, theirs in expected().items():
        if not prototype.startswith("void"):
            assert wrong(prototype, theirs ^ np.uint64(1 << 18), theirs), prototype


OVERLOADS = {
    "lround(2.5f)": 3, "std::lround(1e30f)": 2**63, "std::lrintf(2.5f)": 2, "std::llround(-0.5f)": -1, "rsqrt(4.f)": 0.5,
    "max(1u, 2)": 2, "abs(-3)": 3, "fmod(5.5f, 2.f)": 1.5, "pow(2.f, 3)": 8, "norm3d(1., 2., 2.)": 3, "__vadd4(1, 2)": 3,
}  # fmt: skip


@pytest.mark.parametrize(("expression", "value"), OVERLOADS.items())
def test_overloads_and_names_of_std(expression, value, current_device):
    if "std::" in expression and current_device == "cuda":
        pytest.skip("NVRTC has no std")
    y = mr.Tensor(np.zeros(1))
    code = f'extern "C" __global__ void k(double* y) {{ *y = double({expression}); }}'
    mr.RawKernel(code, "k")((1,), (1,), (y.data,))
    assert y.item() == value

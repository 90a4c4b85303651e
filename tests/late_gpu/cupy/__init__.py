"""A GPU that is always late, in the place of CuPy: its part that minires uses, on the CPU.

Nothing in the product knows of it. tests/late_gpu/ is put first on the path, and `import cupy` finds this. Each rule
stands beside the code that keeps it, with where it is written: _queues.py, _memory.py, _arrays.py, _kernels.py.
"""

from . import _queues, cuda
from ._arrays import array, asnumpy, copyto, empty, empty_like, full, ndarray
from ._kernels import RawModule, nvrtc

__all__ = ["RawModule", "array", "asnumpy", "copyto", "cuda", "empty", "empty_like", "full", "ndarray"]
__version__ = "14.2.0"
nvrtc()  # becomes cupy.cuda.nvrtc
del nvrtc


def late_seed(seed: int) -> None:
    """What runs when is decided by this number."""
    _queues.rng.seed(seed)

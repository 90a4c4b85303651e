"""Lesson 4: a race that most runs do not show, found by the sanitizer, and its cure.

    python examples/lesson4_find_a_race.py

The threads of a block share memory. What one writes and another reads needs a barrier between the two: without it,
who comes first is an accident, and a kernel can be right on one GPU and wrong on the next.
"""

import numpy as np

import minires as mr

# Reverses each run of 64 elements through shared memory.
CODE = """
extern "C" __global__ void reverse(const float* x, float* y) {
    __shared__ float tile[64];
    const int t = threadIdx.x, first = blockIdx.x * 64;
    tile[t] = x[first + t];
    __syncthreads();
    y[first + t] = tile[63 - t];
}
"""

# Divides 64 elements by their sum, which the block adds up by a tree.
TREE = """
extern "C" __global__ void shares(const float* x, float* y) {
    __shared__ float part[64];
    const int t = threadIdx.x;
    part[t] = x[t];
    for (int half = 32; half > 0; half /= 2) {
        __syncthreads();
        if (t < half) part[t] += part[t + half];
    }
    __syncthreads();
    y[t] = x[t] / part[0];
}
"""
# A barrier that only some threads reach is no cure: on a GPU the others may wait for ever.
BRANCH = TREE.replace("        __syncthreads();\n", "").replace("if (t < half) ", "if (t < half) __syncthreads(), ")


def launch(code: str, name: str, blocks: int) -> np.ndarray:
    x, y = (mr.Tensor(np.arange(64 * blocks, dtype=np.float32)) for _ in range(2))
    mr.RawKernel(code, name)((blocks,), (64,), (x.data, y.data))
    return y.numpy()


def examine(what: str, code: str, name: str, blocks: int, expected: np.ndarray) -> None:
    try:
        right = np.allclose(launch(code, name, blocks), expected)
        print(f"{what}: the result is {'right' if right else 'WRONG'}")
    except mr.DeviceError as error:
        print(f"{what}: {error}")
    try:
        with mr.sanitize():
            launch(code, name, blocks)
        print("    the sanitizer finds nothing\n")
    except mr.SanitizerError as error:
        print(f"    the sanitizer says: {error}\n")


def main() -> None:
    mr.set_device("cpu")  # the sanitizer runs a launch thread by thread, in several orders
    reversed_runs = np.arange(256).reshape(4, 64)[:, ::-1].ravel()
    examine("reverse", CODE, "reverse", 4, reversed_runs)
    examine("reverse without its barrier", CODE.replace("__syncthreads();", ""), "reverse", 4, reversed_runs)
    shares = np.arange(64) / np.arange(64).sum()
    examine("shares", TREE, "shares", 1, shares)
    examine("shares with a barrier in the branch", BRANCH, "shares", 1, shares)


if __name__ == "__main__":
    main()

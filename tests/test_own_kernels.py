"""Kernels as learners bring them: one of each kind, against NumPy, plain and sanitized, and compiled by NVRTC."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from test_cuda import ARCHITECTURES, compile_everywhere

import minires as mr
from minires import device

ROOT = Path(__file__).resolve().parent.parent
N = 1024
X = np.random.default_rng(0).standard_normal(N).astype(np.float32)
I = np.random.default_rng(1).integers(0, 1000, N).astype(np.int32)  # noqa: E741
A, B = X[:128].astype(float).view(complex).reshape(2, 32)
PAIR = np.dtype([("a", np.float32), ("b", np.int32)])


@dataclass
class Own:
    """A kernel, how it is launched, and what its arrays must hold then, by place among the arguments."""

    code: str
    name: str
    grid: tuple
    block: tuple
    args: tuple
    expected: dict
    shared_mem: int = 0
    atol: float = 1e-5
    exact: bool = False


def zeros(n, dtype=np.float32):
    return np.zeros(n, dtype)


def pairs(z: np.ndarray) -> np.ndarray:
    return np.stack([z.real, z.imag], 1)


def structs():
    items = np.zeros(64, PAIR)
    items["a"], items["b"] = X[:64], I[:64]
    return items


def rounded(f: Callable, direction: str) -> np.ndarray:
    """f of the elements of X[:64] and X[64:128], without error, and then as float32."""
    results = []
    for a, b in zip(X[:64], X[64:128], strict=True):
        value = f(Fraction(float(a)), Fraction(float(b)))
        nearest = np.float32(value.numerator / value.denominator)
        wanted = {"down": -np.inf, "up": np.inf, "to zero": 0, "to nearest": None}[direction]
        too_far = Fraction(float(nearest)) > value if wanted == -np.inf else Fraction(float(nearest)) < value
        if wanted == 0:
            too_far = abs(Fraction(float(nearest))) > abs(value)
        results.append(np.nextafter(nearest, np.float32(wanted)) if wanted is not None and too_far else nearest)
    return np.array(results)


OWN = {
    "a template": Own(
        "template <typename T, int K> __global__ void scale(const T* x, T* y, int n) {\n"
        "  int i = blockIdx.x * blockDim.x + threadIdx.x;\n  if (i < n) y[i] = T(K) * x[i];\n}",
        "scale<float, 4>",
        (4,),
        (256,),
        (X, zeros(N), N),
        {1: 4 * X},
    ),
    "a template with a default, in a namespace": Own(
        "namespace mine { template <class T, int K = 3> __global__ void scale(T* y) { y[threadIdx.x] *= K; } }",
        "mine::scale<double>",
        (1,),
        (64,),
        (X[:64].astype(float),),
        {0: 3 * X[:64].astype(float)},
    ),
    "no extern C, and (void)": Own(
        "__device__ int counter[64];\n__global__ void nothing(void) { counter[threadIdx.x] = 1; }",
        "nothing",
        (1,),
        (64,),
        (),
        {},
    ),
    "dynamic shared memory": Own(
        "__global__ void reverse(const float* x, float* y) {\n  extern __shared__ float s[];\n"
        "  int t = threadIdx.x, first = blockIdx.x * blockDim.x;\n  s[t] = x[first + t];\n  __syncthreads();\n"
        "  y[first + t] = s[blockDim.x - 1 - t];\n}",
        "reverse",
        (8,),
        (128,),
        (X, zeros(N)),
        {1: X.reshape(8, 128)[:, ::-1].ravel()},
        shared_mem=512,
    ),
    "dynamic shared memory in two halves, aligned, of bytes": Own(
        "__global__ void halves(const float* x, float* y) {\n"
        "  extern __shared__ __align__(16) unsigned char raw[];\n  float* a = reinterpret_cast<float*>(raw);\n"
        "  int* b = (int*)(a + blockDim.x);\n  int t = threadIdx.x;\n  a[t] = x[t];\n  b[t] = t;\n  __syncthreads();\n"
        "  y[t] = a[b[t ^ 1]];\n}",
        "halves",
        (1,),
        (256,),
        (X[:256], zeros(256)),
        {1: X[np.arange(256) ^ 1]},
        shared_mem=2048,
    ),
    "cooperative groups": Own(
        "#include <cooperative_groups.h>\n#include <cooperative_groups/reduce.h>\nnamespace cg = cooperative_groups;\n"
        "__global__ void sums(const float* x, float* y, float* z) {\n  cg::thread_block block = cg::this_thread_block();\n"
        "  cg::thread_block_tile<32> warp = cg::tiled_partition<32>(block);\n"
        "  float v = x[blockIdx.x * block.size() + block.thread_rank()];\n"
        "  float sum = cg::reduce(warp, v, cg::plus<float>()), most = cg::reduce(warp, v, cg::greater<float>());\n"
        "  for (int d = warp.size() / 2; d > 0; d /= 2) v += warp.shfl_down(v, d);\n  block.sync();\n"
        "  if (warp.thread_rank() == 0) {\n"
        "    int w = blockIdx.x * warp.meta_group_size() + warp.meta_group_rank();\n    y[w] = sum - v;\n    z[w] = most;\n"
        "  }\n}",
        "sums",
        (4,),
        (256,),
        (X, zeros(32), zeros(32)),
        {1: zeros(32), 2: X.reshape(32, 32).max(1)},
    ),
    "smaller tiles": Own(
        "#include <cooperative_groups.h>\nusing namespace cooperative_groups;\n"
        "__global__ void sums(const int* x, int* y) {\n  auto tile = tiled_partition<8>(this_thread_block());\n"
        "  int v = x[blockIdx.x * blockDim.x + threadIdx.x];\n"
        "  for (int i = tile.size() / 2; i > 0; i /= 2) v += tile.shfl_xor(v, i);\n"
        "  if (tile.thread_rank() == 0) y[(blockIdx.x * blockDim.x + threadIdx.x) / 8] = v;\n  tile.sync();\n}",
        "sums",
        (4,),
        (256,),
        (I, zeros(128, np.int32)),
        {1: I.reshape(128, 8).sum(1)},
    ),
    "vector types": Own(
        "__global__ void lengths(const float4* x, float2* y, float3* z) {\n"
        "  int i = blockIdx.x * blockDim.x + threadIdx.x;\n  float4 v = x[i];\n  y[i] = make_float2(v.x + v.y, v.z + v.w);\n"
        "  z[i] = make_float3(v.x, v.y, v.z);\n}",
        "lengths",
        (2,),
        (128,),
        (X.reshape(256, 4), zeros((256, 2)), zeros((256, 3))),
        {1: X.reshape(256, 2, 2).sum(2), 2: X.reshape(256, 4)[:, :3]},
    ),
    "a structure by value and by pointer": Own(
        "struct Pair { float a; int b; };\n"
        "__global__ void apply(const Pair* pairs, __grid_constant__ const Pair p, float* y, size_t n) {\n"
        "  size_t i = blockIdx.x * blockDim.x + threadIdx.x;\n"
        "  if (i < n) y[i] = pairs[i].a * p.a + pairs[i].b + p.b;\n}",
        "apply",
        (1,),
        (64,),
        (structs(), np.array((2.0, 5), PAIR)[()], zeros(64), 64),
        {2: 2 * X[:64] + I[:64] + 5},
    ),
    "integer atomics": Own(
        "__global__ void histogram(const int* x, unsigned* counts, int* least, int* most, unsigned* bits, int* wrapped) {\n"
        "  int v = x[blockIdx.x * blockDim.x + threadIdx.x];\n  atomicAdd(&counts[v % 16], 1u);\n"
        "  atomicMin(least, v);\n  atomicMax(most, v);\n  atomicOr(bits, 1u << (v % 32));\n"
        "  atomicInc((unsigned*)wrapped, 99u);\n}",
        "histogram",
        (4,),
        (256,),
        (I, zeros(16, np.uint32), np.full(1, 10**6, np.int32), zeros(1, np.int32), zeros(1, np.uint32), zeros(1, np.int32)),
        {1: np.bincount(I % 16, minlength=16), 2: [I.min()], 3: [I.max()], 4: [2**32 - 1], 5: [N % 100]},
    ),
    "more atomics": Own(
        "__global__ void more(int* a, unsigned long long* b, unsigned* c, int* locked) {\n  atomicSub(a, 2);\n"
        "  atomicAdd(b, 1ull << 33);\n  atomicXor(c, 1u << (threadIdx.x % 32));\n  atomicAnd(c + 1, ~(1u << (threadIdx.x % 8)));\n"
        "  int old = *(volatile int*)locked, seen;\n"
        "  do { seen = old; old = atomicCAS(locked, seen, seen + 3); } while (old != seen);\n}",
        "more",
        (2,),
        (64,),
        (zeros(1, np.int32), zeros(1, np.uint64), np.full(2, 2**32 - 1, np.uint32), zeros(1, np.int32)),
        {0: [-256], 1: [2**40], 2: [2**32 - 1, 2**32 - 256]},
    ),
    "atomics of floats": Own(
        "__global__ void total(const float* x, float* sum, double* precise) {\n"
        "  int i = blockIdx.x * blockDim.x + threadIdx.x;\n  atomicAdd(sum, floorf(x[i]));\n  atomicAdd(precise, 0.5);\n}",
        "total",
        (4,),
        (256,),
        (X, zeros(1), zeros(1, np.float64)),
        {1: [np.floor(X).sum()], 2: [N / 2]},
    ),
    "votes": Own(
        "__global__ void votes(const int* x, unsigned* y) {\n  int t = threadIdx.x, v = x[t], w = t / 32;\n"
        "  unsigned b = __ballot_sync(0xffffffff, v > 500);\n  int any = __any_sync(0xffffffff, v > 990);\n"
        "  int all = __all_sync(0xffffffff, v >= 0);\n  unsigned same = __match_any_sync(0xffffffff, v % 3);\n"
        "  unsigned sum = __popc(b) + 100 * any + 1000 * all;\n"
        "  if (t % 32 == 0) { y[2 * w] = sum; y[2 * w + 1] = same; }\n}",
        "votes",
        (1,),
        (128,),
        (I[:128], zeros(8, np.uint32)),
        {
            1: np.array(
                [
                    ((w > 500).sum() + 100 * (w > 990).any() + 1000, sum(1 << k for k in range(32) if w[k] % 3 == w[0] % 3))
                    for w in I[:128].reshape(4, 32)
                ]
            ).ravel()
        },
    ),
    "reductions of a warp": Own(
        "#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800 || defined(MINIRES_CALLER)\n"
        "__device__ unsigned total(unsigned v) { return __reduce_add_sync(0xffffffffu, v); }\n#else\n"
        "__device__ unsigned total(unsigned v) { for (int d = 16; d; d /= 2) v += __shfl_xor_sync(~0u, v, d); return v; }\n"
        "#endif\n__global__ void k(const int* x, unsigned* y) {\n  unsigned v = total(x[threadIdx.x]);\n"
        "  if (threadIdx.x % 32 == 0) y[threadIdx.x / 32] = v;\n}",
        "k",
        (1,),
        (128,),
        (I[:128], zeros(4, np.uint32)),
        {1: I[:128].reshape(4, 32).sum(1)},
    ),
    # Lanes 0 and 1, and then each by itself, go on while others have yet to read what all have shown.
    "a few lanes that go on": Own(
        "__global__ void few(const int* x, int* y) {\n  int lane = threadIdx.x % 32, v = x[threadIdx.x];\n"
        "  int votes = __ballot_sync(0xffffffffu, v > 500), all = __shfl_sync(0xffffffffu, v, 1), two = 0, own = 0;\n"
        "  if (lane < 2) {\n    two = __shfl_sync(3u, -v, 1 - lane);\n    __syncwarp(3u);\n"
        "    own = __shfl_sync(1u << lane, 2 * v, lane);\n    own += __shfl_sync(1u << lane, v, lane);\n  }\n"
        "  all += __shfl_sync(0xffffffffu, v, 0);\n"
        "  int* to = y + 4 * threadIdx.x;\n  to[0] = all;\n  to[1] = votes;\n  to[2] = two;\n  to[3] = own;\n}",
        "few",
        (1,),
        (64,),
        (I[:64], zeros((64, 4), np.int32)),
        {
            1: [
                (
                    I[t // 32 * 32] + I[t // 32 * 32 + 1],
                    np.uint32(sum(1 << i for i in range(32) if I[t // 32 * 32 + i] > 500)).astype(np.int32),
                    -I[t ^ 1] if t % 32 < 2 else 0,
                    3 * I[t] if t % 32 < 2 else 0,
                )
                for t in range(64)
            ]
        },
    ),
    "opportunistic counting": Own(
        "__device__ int aggregated(int* counter) {\n  unsigned mask = __activemask();\n"
        "  int leader = __ffs(mask) - 1, lane = threadIdx.x % 32, base = 0;\n"
        "  if (lane == leader) base = atomicAdd(counter, __popc(mask));\n  base = __shfl_sync(mask, base, leader);\n"
        "  return base + __popc(mask & ((1u << lane) - 1));\n}\n"
        "__global__ void filter(const int* x, int* y, int* count, int n) {\n  int i = blockIdx.x * blockDim.x + threadIdx.x;\n"
        "  if (i < n && x[i] > 500) { aggregated(count); }\n}",
        "filter",
        (4,),
        (256,),
        (I, zeros(N, np.int32), zeros(1, np.int32), N),
        {2: [(I > 500).sum()]},
    ),
    "bits": Own(
        "__global__ void bits(const int* x, int* y) {\n  int t = threadIdx.x, v = x[t];\n"
        "  unsigned long long w = (unsigned long long)v << 20 | 1;\n"
        "  y[t] = __popcll(w) + __clzll((long long)w) + __ffsll((long long)w) + (int)(__brev((unsigned)v) >> 22)\n"
        "       + (int)(__byte_perm(v, 0, 0x4401) & 0xff);\n}",
        "bits",
        (1,),
        (128,),
        (I[:128], zeros(128, np.int32)),
        {
            1: [
                (
                    bin(int(v) << 20 | 1).count("1")
                    + 64
                    - (int(v) << 20 | 1).bit_length()
                    + 1
                    + (int(f"{int(v):032b}"[::-1], 2) >> 22)
                    + (int(v) >> 8 & 255)
                )
                for v in I[:128]
            ]
        },
    ),
    "rounded and fast arithmetic": Own(
        "__global__ void k(const float* x, float* y) {\n  int t = threadIdx.x;\n  float v = x[t];\n"
        "  y[t] = __fmaf_rn(v, 2.0f, 1.0f) + __saturatef(v) + __fdividef(v, 4.0f) + __frcp_rn(v * v + 1.0f) + __fsqrt_rn(v * v)\n"
        "       + __fadd_rn(v, __fmul_rn(v, 3.0f)) + (float)__float2int_rn(v) + __int_as_float(__float_as_int(v));\n}",
        "k",
        (1,),
        (256,),
        (X[:256], zeros(256)),
        {1: (lambda v: 2 * v + 1 + np.clip(v, 0, 1) + v / 4 + 1 / (v * v + 1) + abs(v) + 4 * v + np.rint(v) + v)(X[:256])},
    ),
    "cached loads and stores": Own(
        "__global__ void k(const float* x, float* y) {\n  int t = threadIdx.x;\n"
        "  __stcs(&y[t], __ldcs(&x[t]) + __ldcg(&x[t]) + __ldca(&x[t]) + __ldg(&x[t]));\n  __stcg(&y[t + 256], 1.0f);\n}",
        "k",
        (1,),
        (256,),
        (X[:256], zeros(512)),
        {1: np.concatenate([4 * X[:256], np.ones(256)])},
    ),
    "shared arrays of every shape": Own(
        "struct Point { float x, y; };\n__global__ void k(const float* x, float* y) {\n"
        "  __shared__ float tile[8][8 + 1], line[64];\n  __shared__ Point points[64];\n  __shared__ volatile int flag;\n"
        "  __shared__ __align__(16) double wide[64];\n  int t = threadIdx.x;\n  tile[t / 8][t % 8] = x[t];\n"
        "  points[t].x = x[t];\n  points[t].y = t;\n  wide[t] = 2.0 * x[t];\n  line[t] = 1.0f;\n  if (t == 0) flag = 7;\n"
        "  __syncthreads();\n"
        "  y[t] = tile[t % 8][t / 8] + points[63 - t].x + points[63 - t].y + (float)wide[t] + line[63 - t] + flag;\n}",
        "k",
        (3,),
        (64,),
        (X[:64], zeros(64)),
        {1: X[:64].reshape(8, 8).T.ravel() + X[63::-1] + np.arange(63, -1, -1) + 2 * X[:64] + 8},
    ),
    "shared arrays outside of functions": Own(
        "__shared__ float row[128];\n__device__ float opposite(int t) { return row[127 - t]; }\n"
        "__global__ void k(const float* x, float* y) {\n  row[threadIdx.x] = x[threadIdx.x];\n  __syncthreads();\n"
        "  y[blockIdx.x * 128 + threadIdx.x] = opposite(threadIdx.x);\n}",
        "k",
        (4,),
        (128,),
        (X[:128], zeros(512)),
        {1: np.tile(X[127::-1], 4)},
    ),
    "constants": Own(
        "__constant__ float weights[3] = {0.5f, 1.0f, 0.25f};\nstatic __constant__ const int offset = 2;\n"
        "#define RADIUS 1\n__global__ void blur(const float* __restrict__ x, float* __restrict__ y, const int n) {\n"
        "  int i = blockIdx.x * blockDim.x + threadIdx.x;\n  float s = offset;\n#pragma unroll\n"
        "  for (int j = -RADIUS; j <= RADIUS; ++j) if (i + j >= 0 && i + j < n) s += weights[j + RADIUS] * x[i + j];\n"
        "  if (i < n) y[i] = s;\n}",
        "blur",
        (5,),
        (256,),
        (X[:1000], zeros(1000), 1000),
        {1: np.convolve(X[:1000], [0.25, 1, 0.5], "same") + 2},
    ),
    "headers of a whole program": Own(
        "#include <cuda_runtime.h>\n#include <device_launch_parameters.h>\n#include <math.h>\n#include <stdio.h>\n"
        "#include <assert.h>\n#include <stdint.h>\n#include <float.h>\n"
        "__global__ void k(const uint32_t n, const float* x, float* y) {\n  uint idx = threadIdx.x;\n  assert(n > 0);\n"
        "  float most = -FLT_MAX;\n  for (uint i = idx; i < n; i += blockDim.x) most = fmaxf(most, x[i]);\n  y[idx] = most;\n}",
        "k",
        (1,),
        (32,),
        (N, X, zeros(32)),
        {2: X.reshape(32, 32).max(0)},
    ),
    "counting barriers and the clock": Own(
        "__global__ void k(const int* x, int* y) {\n  int t = threadIdx.x;\n  long long began = clock64();\n"
        "  int n = __syncthreads_count(x[t] > 500), some = __syncthreads_or(x[t] > 2000), all = __syncthreads_and(x[t] >= 0);\n"
        "  y[t] = n + 10000 * some + 20000 * all + (clock64() < began);\n}",
        "k",
        (2,),
        (256,),
        (I[:256], zeros(256, np.int32)),
        {1: np.full(256, (I[:256] > 500).sum() + 20000)},
    ),
    "aligned dynamic shared memory of bytes": Own(
        "template <typename T> __global__ void k(const T* x, T* y) {\n"
        "  extern __shared__ __align__(sizeof(T)) unsigned char raw[];\n  T* s = reinterpret_cast<T*>(raw);\n"
        "  __shared__ alignas(16) T twice[64];\n  alignas(8) __shared__ T once[64];\n  int t = threadIdx.x;\n  s[t] = x[t];\n"
        "  once[t] = x[t];\n  twice[t] = 2 * x[t];\n  __syncthreads();\n  y[t] = s[63 - t] + twice[63 - t] + once[63 - t];\n}",
        "k<double>",
        (1,),
        (64,),
        (X[:64].astype(float), zeros(64, float)),
        {1: 4 * X[63::-1].astype(float)},
        shared_mem=512,
    ),
    "a name of C's library": Own(
        'extern "C" __global__ void index(const float* x, float* y, int n = 0) { y[threadIdx.x] = expf(x[threadIdx.x]); }',
        "index",
        (1,),
        (64,),
        (X[:64], zeros(64), 64),
        {1: np.exp(X[:64])},
    ),
    "macros with everyday names": Own(
        "#define threads 64\n#define args 2\n#define block 3\n#define grid 1\n#define launch 1\n#define bytes 8\n"
        "#define line 5\n#define file 6\n#define T 8\n#define K 4\n#define A 1\n"
        "__global__ void k(float* y) {\n  __shared__ float s[T][T];\n  int t = threadIdx.x;\n  s[t / T][t % T] = t;\n"
        "  __syncthreads();\n  y[t] = s[t % T][t / T] + __shfl_sync(0xffffffff, block + gridDim.x, 0);\n}",
        "k",
        (1,),
        (64,),
        (zeros(64),),
        {0: np.arange(64).reshape(8, 8).T.ravel() + 4},
    ),
    "objects with virtual functions, on the heap": Own(
        "struct Shape { __device__ virtual float area() const = 0; __device__ virtual ~Shape() {} };\n"
        "struct Square : Shape { float a; __device__ Square(float a) : a(a) {} __device__ float area() const { return a * a; } };\n"
        "__global__ void k(const float* x, float* y) {\n  int t = threadIdx.x;\n  Shape* shape = new Square(x[t]);\n"
        "  float* copy = (float*)malloc(4);\n  *copy = shape->area();\n  y[t] = *copy;\n  free(copy);\n  delete shape;\n}",
        "k",
        (1,),
        (64,),
        (X[:64], zeros(64)),
        {1: X[:64] ** 2},
    ),
    "rounding in every direction": Own(
        "__global__ void k(const float* x, float* y) {\n  int t = threadIdx.x;\n  float a = x[t], b = x[t + 64];\n"
        "  y[t] = __fadd_rd(a, b);\n  y[t + 64] = __fadd_ru(a, b);\n  y[t + 128] = __fmul_rz(a, b);\n"
        "  y[t + 192] = __fdiv_ru(a, b);\n  y[t + 256] = __fmaf_rd(a, b, a);\n  y[t + 320] = __fadd_rn(a, b);\n}",
        "k",
        (1,),
        (64,),
        (X[:128], zeros(384)),
        {
            1: np.concatenate(
                [
                    rounded(lambda a, b: a + b, "down"),
                    rounded(lambda a, b: a + b, "up"),
                    rounded(lambda a, b: a * b, "to zero"),
                    rounded(lambda a, b: a / b, "up"),
                    rounded(lambda a, b: a * b + a, "down"),
                    rounded(lambda a, b: a + b, "to nearest"),
                ]
            )
        },
        exact=True,
    ),
    "labels in a warp, and scans": Own(
        "#include <cooperative_groups.h>\n#include <cooperative_groups/scan.h>\nnamespace cg = cooperative_groups;\n"
        "__global__ void k(int* y) {\n  auto warp = cg::tiled_partition<32>(cg::this_thread_block());\n  int t = threadIdx.x;\n"
        "  auto same = cg::labeled_partition(warp, t % 5);\n  auto half = cg::binary_partition(warp, t < 20);\n"
        "  y[t] = same.size() + 100 * half.thread_rank() + 10000 * cg::exclusive_scan(warp, t, cg::plus<int>());\n"
        "  y[t + 32] = cg::inclusive_scan(warp, t);\n}",
        "k",
        (1,),
        (32,),
        (zeros(64, np.int32),),
        {
            0: [(7 if t % 5 < 2 else 6) + 100 * (t if t < 20 else t - 20) + 10000 * (t * (t - 1) // 2) for t in range(32)]
            + [t * (t + 1) // 2 for t in range(32)]
        },
    ),
    "a structure defined where it is declared": Own(
        "__global__ void k(const float* x, float* y) {\n  __shared__ struct { float a[64]; int n; } s;\n"
        "  __shared__ union Either { float f[64]; int i[64]; } u;\n  int t = threadIdx.x;\n  s.a[t] = x[t];\n  u.f[t] = 1;\n"
        "  if (t == 0) s.n = 3;\n  __syncthreads();\n  y[t] = s.a[63 - t] + s.n + u.f[63 - t];\n}",
        "k",
        (1,),
        (64,),
        (X[:64], zeros(64)),
        {1: X[63::-1] + 4},
    ),
    "cuda::std": Own(
        "#include <cuda/std/limits>\ntemplate <class T> __global__ void k(T* y) {\n"
        "  y[threadIdx.x] = cuda::std::numeric_limits<T>::max();\n}",
        "k<float>",
        (1,),
        (32,),
        (zeros(32),),
        {0: np.full(32, np.finfo(np.float32).max)},
    ),
    "means and differences of integers": Own(
        "__global__ void k(const int* x, long long* y) {\n  int t = threadIdx.x, a = x[t] - 500, b = x[t + 64];\n"
        "  long long wide = (long long)a << 40;\n  y[t] = __sad(a, b, 7u);\n  y[t + 64] = __hadd(a, b) + 3 * __rhadd(a, b);\n"
        "  y[t + 128] = __mul64hi(wide, wide + b);\n  y[t + 192] = __funnelshift_lc(a, b, 40);\n}",
        "k",
        (1,),
        (64,),
        (I[:128], zeros(256, np.int64)),
        {
            1: [abs(a - 500 - b) + 7 for a, b in zip(I[:64].tolist(), I[64:128].tolist(), strict=True)]
            + [
                ((a - 500 + b) >> 1) + 3 * ((a - 500 + b + 1) >> 1)
                for a, b in zip(I[:64].tolist(), I[64:128].tolist(), strict=True)
            ]
            + [
                (((a - 500) << 40) * (((a - 500) << 40) + b)) >> 64
                for a, b in zip(I[:64].tolist(), I[64:128].tolist(), strict=True)
            ]
            + [(a - 500) % 2**32 for a in I[:64].tolist()]
        },
    ),
    "__shared__ in any place of a declaration": Own(
        "template <class T, int N> struct Row { T v[N]; };\n"
        "template <class T> __global__ void k(const T* x, T* y) {\n  extern volatile __shared__ float a[];\n"
        "  float __shared__ b[64], c;\n  volatile __shared__ float d[64];\n  __shared__ static int e[64];\n"
        "  Row<T, 64> __shared__ f;\n  int t = threadIdx.x;\n  a[t] = b[t] = d[t] = f.v[t] = x[t];\n  e[t] = t;\n"
        "  if (t == 0) c = 5;\n  __syncthreads();\n  int o = 63 - t;\n  y[t] = a[o] + b[o] + d[o] + f.v[o] + e[o] + c;\n}",
        "k<float>",
        (1,),
        (64,),
        (X[:64], zeros(64)),
        {1: 4 * X[63::-1] + np.arange(63, -1, -1) + 5},
        shared_mem=256,
    ),
    "ranks in a grid": Own(
        "#include <cooperative_groups.h>\nnamespace cg = cooperative_groups;\n__global__ void k(long long* y, int n) {\n"
        "  cg::grid_group grid = cg::this_grid();\n  for (int i = grid.thread_rank(); i < n; i += grid.size())\n"
        "    y[i] = i + 1000 * grid.size() + 1000000 * grid.block_rank() + grid.num_blocks();\n}",
        "k",
        (2, 3),
        (16, 2),
        (zeros(300, np.int64), 300),
        {0: [i + 1000 * 192 + 1000000 * (i % 192 // 32) + 6 for i in range(300)]},
    ),
    "complex numbers": Own(
        "#include <cuComplex.h>\n__global__ void k(const cuFloatComplex* x, cuFloatComplex* y, cuDoubleComplex* z) {\n"
        "  int t = threadIdx.x;\n  cuFloatComplex a = x[t], b = x[t + 32];\n"
        "  y[t] = cuCaddf(cuCdivf(a, b), cuCmulf(cuConjf(a), make_cuFloatComplex(0.5f, -2)));\n"
        "  cuDoubleComplex c = cuComplexFloatToDouble(a), d = cuComplexFloatToDouble(b);\n"
        "  z[t] = make_cuDoubleComplex(cuCabs(cuCsub(c, d)), cuCimag(cuCfma(c, d, c)) + cuCreal(cuCdiv(c, d)));\n}",
        "k",
        (1,),
        (32,),
        (X[:128].reshape(64, 2), zeros((32, 2)), zeros((32, 2), np.float64)),
        {1: pairs(A / B + A.conj() * (0.5 - 2j)), 2: pairs(abs(A - B) + 1j * ((A * B + A).imag + (A / B).real))},
        atol=1e-4,
    ),
    "references, rows and enumerations": Own(
        "enum class Mode : int { keep, twice };\nenum Sign { plus, minus };\n"
        "__global__ void k(const float& factor, float (&y)[64], float (*rows)[32], Mode mode, Sign sign) {\n  int t = threadIdx.x;\n"
        "  y[t] = factor * (mode == Mode::twice ? 2 : 1) * (sign == minus ? -1 : 1) * t;\n"
        "  rows[t / 32][t % 32] = t;\n}",
        "k",
        (1,),
        (64,),
        (X[:1], zeros(64), zeros((2, 32)), np.int32(1), np.uint32(1)),
        {1: -2 * X[0] * np.arange(64), 2: np.arange(64).reshape(2, 32)},
    ),
    "shuffles of 8 bytes": Own(
        "__global__ void k(const double* x, double* y, long long* z) {\n  int t = threadIdx.x;\n"
        "  y[t] = __shfl_up_sync(0xffffffffu, x[t], 1);\n  z[t] = __shfl_xor_sync(0xffffffffu, (long long)t << 40, 1);\n}",
        "k",
        (1,),
        (32,),
        (X[:32].astype(float), zeros(32, np.float64), zeros(32, np.int64)),
        {1: np.concatenate([X[:1], X[:31]]), 2: (np.arange(32) ^ 1) << 40},
    ),
}


def launch(own: Own) -> dict[int, np.ndarray]:
    now = device.current()
    args = [now.to_device(a) if isinstance(a, np.ndarray) else a for a in own.args]
    mr.RawKernel(own.code, own.name)(own.grid, own.block, tuple(args), shared_mem=own.shared_mem)
    return {i: now.to_host(args[i]) for i in own.expected}


def unordered(name: str) -> bool:
    """Blocks of these write one place without atomics, or in an order that is not theirs to choose: the same values."""
    return name in ("counting barriers and the clock", "shared arrays of every shape")


@pytest.mark.parametrize("sanitized", [False, True], ids=["plain", "sanitized"])
@pytest.mark.parametrize("name", OWN)
def test_values(name, sanitized, current_device):
    own = OWN[name]
    if sanitized and current_device != "cpu":
        pytest.skip("the sanitizer is one of the cpu device")
    if sanitized:
        grid = (1,) if unordered(name) else own.grid
        with mr.sanitize("mem,init,sync" if name == "more atomics" else "all"):
            results = launch(Own(**vars(own) | {"grid": grid}))
    else:
        results = launch(own)
    for i, expected in own.expected.items():
        rtol, atol = (0, 0) if own.exact else (1e-5, own.atol)
        np.testing.assert_allclose(results[i], expected, rtol=rtol, atol=atol)


def test_a_macro_may_write_a_kernel(current_device):
    if current_device != "cpu":
        pytest.skip("on a GPU its parameters cannot be read, which is said")
    code = "#define UNARY(name, f) __global__ void name##_kernel(float* x) \\\n  { x[threadIdx.x] = f(x[threadIdx.x]); }\n"
    x = device.current().to_device(X[:64])
    mr.RawKernel(f"{code}UNARY(half, 0.5f *)\nUNARY(root, sqrtf)\n", "half_kernel")((1,), (64,), (x,))
    np.testing.assert_array_equal(x, X[:64] / 2)
    with pytest.raises(mr.DeviceError, match="third_kernel"):
        mr.RawKernel(code, "third_kernel")


def test_nvrtc_takes_them_too(current_device):
    if current_device != "cpu":
        pytest.skip("once is enough: this does not depend on the current device")
    # Most fit into one source, in which no header may be in another one's way: NVRTC then reads them once an architecture.
    fits = {name: not re.search(r'extern "C"|#(?!include)', own.code) for name, own in OWN.items()}
    includes, bodies, names = set(), "", []
    for i, own in enumerate(own for name, own in OWN.items() if fits[name]):
        includes |= set(re.findall(r"^#.*$", own.code, re.MULTILINE))
        bodies += f"namespace own_{i} {{\n{re.sub(r'^#.*$', '', own.code, flags=re.MULTILINE)}\n}}\n"
        names.append(f"own_{i}::{own.name}")
    alone = [(own.code, [own.name]) for name, own in OWN.items() if not fits[name]]
    oldest, *_, newest = ARCHITECTURES
    found = compile_everywhere([("\n".join([*sorted(includes), bodies]), names), *alone], architectures=[oldest, newest])
    assert sum(len(resources) for resources, *_ in found) == len(OWN)


def test_several_threads_of_the_system(current_device, monkeypatch):
    """Atomics and votes must hold where blocks really run side by side."""
    if current_device != "cpu":
        pytest.skip("the cpu device")
    monkeypatch.setattr(device.current(), "threads", 4)
    for name in ("integer atomics", "more atomics", "atomics of floats", "votes", "opportunistic counting"):
        for _ in range(20):
            results = launch(OWN[name])
            for i, expected in OWN[name].expected.items():
                np.testing.assert_array_equal(results[i], expected)


# ---------------------------------------------------------------------------------------------------------------------
# What is wrong is said in one sentence

HEAD = "__global__ void k(float* x, int n) {\n"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("texture<float, 1> t;\n" + HEAD + "x[0] = tex1Dfetch(t, n);\n}", "RawKernel:1: textures and surfaces cannot be had"),
        (HEAD + "x[0] = tex2D<float>((cudaTextureObject_t)0, 0, 0);\n}", "RawKernel:2: textures and surfaces"),
        (HEAD + 'asm volatile("mov.u32 %0, %laneid;" : "=r"(n));\n}', r"RawKernel:2: inline PTX \(asm\) cannot be had"),
        ("#include <cuda_fp16.h>\n" + HEAD + "__half h = __float2half(x[0]);\n}", "RawKernel:3: half precision"),
        ("#include <mma.h>\nusing namespace nvcuda;\n" + HEAD + "wmma::fill_fragment(x, 0);\n}", "mma.h"),
        (HEAD + "k<<<1, 1>>>(x, n);\n}", "RawKernel:2: a launch from a kernel"),
        ("#include <cub/cub.cuh>\n" + HEAD + "}", "RawKernel:1: there is no header 'cub/cub.cuh'"),
        (
            "#include <cooperative_groups.h>\n" + HEAD + "cooperative_groups::this_grid().sync();\n}",
            "RawKernel:3: synchronising the grid",
        ),
        (HEAD + "x[0] = undefined_thing;\n}", "undefined_thing"),
    ],
    ids=str,
)
def test_what_cannot_be_had_is_one_sentence(code, words, current_device):
    if current_device != "cpu":
        pytest.skip("what the cpu device has not got")
    with pytest.raises(mr.DeviceError, match=words) as caught:
        mr.RawKernel(code, "k")
    if "undefined" not in words:
        assert len(str(caught.value).splitlines()) == 1


def test_shared_memory_of_a_type_without_a_name_is_one_sentence(current_device):
    if current_device != "cpu":
        pytest.skip("a limit of the cpu device's instruments")
    code = f"{HEAD}\n__shared__ float (*u)[4];\n}}\n"
    with mr.sanitize(), pytest.raises(mr.DeviceError, match="RawKernel:[23]: __shared__ .* the name of a type") as caught:
        mr.RawKernel(code, "k")
    assert len(str(caught.value).splitlines()) == 1


def test_other_kernels_of_the_file_do_not_matter(current_device):
    if current_device != "cpu":
        pytest.skip("NVRTC compiles all of a file")
    code = HEAD + "x[threadIdx.x] = n;\n}\n__global__ void other(float* x) { x[0] = tex1Dfetch(t, 0); }\n"
    x = device.current().to_device(np.zeros(4, np.float32))
    mr.RawKernel(code, "k")((1,), (4,), (x, 7))
    np.testing.assert_array_equal(x, 7)


def test_a_failed_assertion_says_where(current_device):
    if current_device != "cpu":
        pytest.skip("on a GPU it ends the process's use of it")
    code = "__global__ void k(int n) {\n__syncthreads();\nassert(threadIdx.x + blockIdx.x != n && n > 0);\n__syncthreads();\n}"
    words = r"RawKernel:3, block \(2, 0, 0\), thread \(40, 0, 0\): assertion failed: threadIdx.x \+ blockIdx.x != n && n > 0"
    kernel = mr.RawKernel(code, "k")
    for _ in range(3):
        with pytest.raises(mr.DeviceError, match=words):
            kernel((3,), (41,), (42,))
        kernel((3,), (41,), (100,))
    with mr.sanitize(), pytest.raises(mr.DeviceError, match="thread .*: RawKernel:3: assertion failed: threadIdx.x") as caught:
        mr.RawKernel(code, "k")((3,), (41,), (42,))
    assert not isinstance(caught.value, mr.SanitizerError)


@pytest.mark.parametrize(
    ("expression", "expected"),
    {
        "__byte_perm(0x80112233, 0x44556677, 0xfb31)": 0x44808022,
        "sinpif(1.0f) == 0 && sinpif(-3.0f) == 0 && sinpi(1e15) == 0 && sinpif(0.5f) == 1": 1,
        "cospif(2.5f) == 0 && cospi(-0.5) == 0 && cospif(3.0f) == -1": 1,
        "norm3df(3e38f, 1e38f, 0.0f) > 3.1e38f && norm3df(3e38f, 1e38f, 0.0f) < 3.2e38f": 1,
        "norm4df(3e-30f, 4e-30f, 0.0f, 0.0f) > 4.9e-30f": 1,
        "__float2int_rz(NAN) == 0 && __float2ll_rz(NAN) == (long long)(1ull << 63)": 1,
        "__double2int_rn(NAN) == (int)(1u << 31) && __double2uint_rz(1e12) == 0xffffffff": 1,
        "__double2hiint(-2.0)": 0xC0000000,
        "__double2loint(1.0 + 1.0 / (1ll << 52))": 1,
        "__hiloint2double(0x40080000, 0) == 3.0 && __hiloint2double(0, -1) > 0": 1,
    }.items(),
)
def test_functions_at_their_edges(expression, expected, current_device):
    """By hand, on each device: the late GPU executes what NVRTC makes of them."""
    code = f"#include <math.h>\n__global__ void k(unsigned* y, float zero) {{ y[0] = unsigned({expression}); }}"
    y = device.current().to_device(np.zeros(1, np.uint32))
    mr.RawKernel(code, "k")((1,), (1,), (y, 0.0))
    assert int(device.current().to_host(y)[0]) == expected


DIVISIONS = {
    "int": ("c[i] = a[i] / b[i];", 0),
    "a remainder": ("c[i] = a[i] % b[i];", 0),
    "unsigned": ("c[i] = unsigned(a[i]) / unsigned(b[i]);", 0),
    "64 bits": ("c[i] = (long long)a[i] % b[i];", 0),
    "16 bits": ("c[i] = short(a[i]) / short(b[i]);", 0),
    "the smallest by -1": ("c[i] = (a[i] - 2147483647 - 1) / b[i];", -1),
}


@pytest.mark.parametrize("sanitized", [False, True], ids=["plain", "sanitized"])
@pytest.mark.parametrize("barrier", ["", "__syncthreads();"], ids=["", "behind a barrier"])
@pytest.mark.parametrize("name", DIVISIONS)
def test_a_division_that_has_no_result_ends_the_launch_alone(name, barrier, sanitized, current_device):
    if current_device != "cpu":
        pytest.skip("a GPU goes on")
    body, divisor = DIVISIONS[name]
    code = (
        "__global__ void k(const int* a, const int* b, int* c) {\nconst int i = blockIdx.x * blockDim.x + threadIdx.x;\n"
        f"{barrier}\n{body}\n{barrier}\n}}"
    )
    a, b, c = (np.full(256, value, np.int32) for value in (0, 1, -1))
    b[200] = divisor
    line = "RawKernel:4, " if sanitized else ""
    words = rf"kernel k, {line}block \(3, 0, 0\), thread \(8, 0, 0\): an integer was divided by zero, or the smallest one by -1"
    for _ in range(3):
        with mr.sanitize() if sanitized else contextlib.nullcontext(), pytest.raises(mr.DeviceError, match=words) as caught:
            mr.RawKernel(code, "k")((4,), (64,), (a, b, c))
        assert getattr(caught.value, "kind", "value") == "value"
        mr.RawKernel(code, "k")((3,), (64,), (a, b, c))
        assert (c[:192] == (0 if divisor == 0 else -(2**31))).all()


MEMORY = {
    "read": ("y[threadIdx.x] = *reinterpret_cast<float*>(p[threadIdx.x]);", "an access to address 0x30, where nothing is"),
    "write": ("*reinterpret_cast<float*>(p[threadIdx.x]) = 1;", "an access to address 0x30, where nothing is"),
    "a null pointer": ("y[threadIdx.x] = none[threadIdx.x];", "an access to address 0x[0-9a-f]+, where nothing is"),
    "endless recursion": ("y[0] = deeper(y);", "the thread's stack overflowed: endless recursion, or large local arrays"),
    "memory freed twice": ("void* m = malloc(n * 24); free(m); free(m);", "memory was freed twice, or was not from malloc"),
    "much of it": ("void* m = malloc(n * 100000); free(m); free(m);", "memory was freed twice, or was not from malloc"),
    "deleted twice": ("volatile float* m = new float[n]; m[0] = 1; delete[] m; delete[] m;", "memory was freed twice"),
    "what is no allocation": ("free(y);", "memory was freed twice, or was not from malloc"),
    "the end of the process": ("exit(n);", r"exit\(\) was called, which no GPU has"),
    "by its name in std": ("std::_Exit(n);", r"exit\(\) was called, which no GPU has"),
    "an abort": ("abort();", r"abort\(\) was called, which no GPU has"),
}


@pytest.mark.parametrize("barrier", ["", "__syncthreads();"], ids=["", "behind a barrier"])
@pytest.mark.parametrize("name", MEMORY)
def test_an_address_without_memory_ends_the_launch_alone(name, barrier, current_device):
    if current_device != "cpu":
        pytest.skip("on a GPU it ends the process's use of it")
    body, words = MEMORY[name]
    code = (
        "__device__ __noinline__ float deeper(volatile float* x) {\nvolatile float here[1000];\nhere[0] = x[0] + 1;\n"
        "return deeper(here) + here[1];\n}\n__global__ void k(float* y, const long long* p, const float* none, int n) {\n"
        f"{barrier}\nif (blockIdx.x == n) {{ {body} }}\n{barrier}\n}}"
    )
    y, p = np.zeros(32, np.float32), np.full(32, 0x30, np.int64)
    kernel = mr.RawKernel(code, "k")
    for _ in range(3):
        with pytest.raises(mr.DeviceError, match=rf"kernel k, block \(1, 0, 0\), thread \(0, 0, 0\): {words}"):
            kernel((2,), (32,), (y, p, None, 1))
        kernel((2,), (32,), (y, p, None, 2))


def test_what_was_allocated_can_be_freed_by_a_later_launch(current_device):
    code = """
    __global__ void make(float** at) { at[threadIdx.x] = new float[3]; at[threadIdx.x][2] = threadIdx.x; }
    __global__ void take(float** at, float* y) { y[threadIdx.x] = at[threadIdx.x][2]; delete[] at[threadIdx.x]; free(nullptr); }
    """
    at, y = mr.device.current().to_device(np.zeros(64, np.uint64)), mr.Tensor(np.zeros(64, np.float32))
    mr.RawKernel(code, "make")((1,), (64,), (at,))
    mr.RawKernel(code, "take")((1,), (64,), (at, y.data))
    np.testing.assert_array_equal(y.numpy(), np.arange(64))


@pytest.mark.parametrize("body", ["throw 1;", "try { x[0] = 1; } catch (...) {}"])
def test_exceptions_are_refused_as_by_nvrtc(body, current_device):
    code = f'extern "C" __global__ void k(float* x) {{\n{body}\n}}'
    words = r"RawKernel:2: exceptions cannot be had on the cpu device" if current_device == "cpu" else "NVRTC could not compile"
    with pytest.raises(mr.DeviceError, match=words):
        mr.RawKernel(code, "k")


SIGNALS = """
import faulthandler, sys
import ctypes, numpy as np, minires as mr
mr.set_device("cpu")
{before}
kernel = mr.RawKernel("__global__ void k(const int* b, int* c) {{ __syncthreads(); c[blockIdx.x] = 7 / b[blockIdx.x]; }}", "k")
b, c = np.ones(1000, np.int32), np.zeros(1000, np.int32)
b[[333, 777]] = 0
for _ in range(50):
    try:
        kernel((1000,), (33,), (b, c))
        sys.exit("no error")
    except mr.DeviceError as error:
        assert "block (333, 0, 0)" in str(error), error
{after}
"""


@pytest.mark.parametrize("threads", [1, 4])
def test_signals_on_all_threads_and_of_the_rest_of_the_process(threads, current_device):
    """The first of several blocks is told of; and a fault that is no kernel's is Python's, as before."""
    if current_device != "cpu":
        pytest.skip("this is about the cpu device")
    for before, after, status, words in (
        ("", "print('went on')", 0, ""),
        ("faulthandler.enable()", "ctypes.string_at(8)", -11, "Fatal Python error: Segmentation fault"),
    ):
        command = [sys.executable, "-c", SIGNALS.format(before=before, after=after)]
        environment = os.environ | {"MINIRES_NUM_THREADS": str(threads)}
        run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
        assert run.returncode == status and words in run.stderr, run.stderr


def test_printf_in_order_and_whole_lines(current_device):
    if current_device != "cpu":
        pytest.skip("a GPU's buffer is printed when it likes")
    code = r"""
import numpy as np, minires as mr
mr.set_device("cpu")
print("before")
kernel = mr.RawKernel('__global__ void k(int n) { printf("block %d\\n", blockIdx.x); if (n) __syncthreads(); }', "k")
kernel((50,), (1,), (1,))
print("after")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.splitlines() == ["before", *(f"block {i}" for i in range(50)), "after"]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"shared_mem": 48 * 1024 + 1}, ValueError, r"shared_mem of kernel apply is 49153: it must lie in 0 .. 49152 bytes"),
        ({"shared_mem": -1}, ValueError, "shared_mem of kernel apply is -1"),
        ({0: np.zeros((64, 3), np.float32)}, TypeError, "'pairs' of kernel apply must be an array of elements of 8 bytes"),
        ({1: 5.0}, TypeError, "'p' of kernel apply is a structure: give a NumPy structured scalar of 8 bytes, got 5.0"),
        ({1: np.zeros((), [("a", "f8", 2)])[()]}, TypeError, "structured scalar of 8 bytes"),
        ({2: np.zeros(64)}, TypeError, "'y' of kernel apply must be a float32 array, got float64"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit(change, error, words, current_device):
    if current_device != "cpu":
        pytest.skip("the arrays here are NumPy's")
    own = OWN["a structure by value and by pointer"]
    args = [change.get(i, a) for i, a in enumerate(own.args)]
    with pytest.raises(error, match=words):
        mr.RawKernel(own.code, own.name)((1,), (64,), tuple(args), shared_mem=change.get("shared_mem", 0))


def test_a_pointer_takes_an_array_of_structures_or_of_their_bytes(current_device):
    if current_device != "cpu":
        pytest.skip("the arrays here are NumPy's")
    own = OWN["a structure by value and by pointer"]
    words = structs().view(np.float32).reshape(64, 2)
    y = np.zeros(64, np.float32)
    mr.RawKernel(own.code, own.name)((1,), (64,), (words, own.args[1], y, 64))
    np.testing.assert_allclose(y, own.expected[2], rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# A file from elsewhere

PROGRAM = """
#include <cuda_runtime.h>
#include <stdio.h>
#include <vector>
#include "helper_cuda.h"
#define CHECK(x) do { cudaError_t e = (x); if (e != cudaSuccess) exit(1); } while (0)
constexpr int WIDTH = 4;

template <class T>
__global__ void scale(const T* x, T* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = helper(x[i]) * WIDTH;
}

static void fill(std::vector<float>& v) { for (auto& x : v) x = rand(); }

int main(int argc, char** argv) {
    float *x, *y;
    CHECK(cudaMalloc(&x, 512 * sizeof(float)));
    scale<float><<<4, 128>>>(x, y, 512);  // }
    printf("done {\\n");
    return 0;
}
"""


def run_kernel(tmp_path, code, *arguments):
    (tmp_path / "file.cu").write_text(code)
    command = [sys.executable, str(ROOT / "examples" / "run_kernel.py"), str(tmp_path / "file.cu"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)


def test_run_kernel(tmp_path, current_device):
    if current_device != "cpu":
        pytest.skip("the command takes the cpu device")
    code = PROGRAM.replace(
        "template <class T>\n", "__device__ float helper(float v) { return v + 1; }\n\ntemplate <class T>\n", 1
    )
    launch = [
        "--grid",
        "4",
        "--block",
        "128",
        "--arg",
        "x=arange:512:float32",
        "--arg",
        "y=zeros:512:float32",
        "--arg",
        "n=512",
    ]
    done = run_kernel(tmp_path, code, "scale<float>", *launch)
    assert done.returncode == 0, done.stderr
    assert "y" in done.stdout and "2048" in done.stdout and "x" not in [line.split()[0] for line in done.stdout.splitlines()]
    wrong = run_kernel(tmp_path, code.replace("if (i < n) ", ""), "scale<float>", *[a.replace("512", "500") for a in launch])
    assert wrong.returncode == 1 and "mem: kernel scale<t=float>, file.cu:14" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    missing = run_kernel(tmp_path, code, "scales", *launch)
    assert missing.returncode == 1 and "no kernel 'scales'" in missing.stderr and "it has: scale" in missing.stderr
    bad = run_kernel(tmp_path, code, "scale<float>", "--grid", "x", "--block", "128")
    assert bad.returncode == 2 and "Traceback" not in bad.stderr


def test_functions_of_ones_own_named_as_those_of_c():
    """What stands for C's function of the name here must not stand in their way."""
    code = """
    __device__ int lround(int a, int b) { return a + b; }
    __device__ int abort(int a) { return a + 1; }
    extern "C" __global__ void sum(int* y) { y[0] = lround(1, 2) + abort(3) + int(lrintf(2.5f)); }
    """
    y = device.current().to_device(np.zeros(1, np.int32))
    mr.RawKernel(code, "sum")((1,), (1,), (y,))
    assert device.current().to_host(y)[0] == 9

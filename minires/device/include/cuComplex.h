// CUDA's complex numbers, as vectors of two: see the CUDA Math API.
#pragma once

#define MINIRES_COMPLEX(C, T, f)                                                                                      \
    typedef T##2 C;                                                                                                   \
    static inline C make_##C(T re, T im) { return {re, im}; }                                                         \
    static inline T cuCreal##f(C a) { return a.x; }                                                                   \
    static inline T cuCimag##f(C a) { return a.y; }                                                                   \
    static inline T cuCabs##f(C a) { return std::hypot(a.x, a.y); }                                                   \
    static inline C cuConj##f(C a) { return {a.x, -a.y}; }                                                            \
    static inline C cuCadd##f(C a, C b) { return {a.x + b.x, a.y + b.y}; }                                            \
    static inline C cuCsub##f(C a, C b) { return {a.x - b.x, a.y - b.y}; }                                            \
    static inline C cuCmul##f(C a, C b) { return {a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x}; }                    \
    static inline C cuCdiv##f(C a, C b) {                                                                             \
        const T s = std::abs(b.x) + std::abs(b.y), x = b.x / s, y = b.y / s, n = x * x + y * y;                       \
        return {(a.x / s * x + a.y / s * y) / n, (a.y / s * x - a.x / s * y) / n};                                    \
    }                                                                                                                 \
    static inline C cuCfma##f(C a, C b, C c) { return cuCadd##f(cuCmul##f(a, b), c); }
MINIRES_COMPLEX(cuFloatComplex, float, f) MINIRES_COMPLEX(cuDoubleComplex, double, )
typedef cuFloatComplex cuComplex;
static inline cuComplex make_cuComplex(float re, float im) { return {re, im}; }
static inline cuFloatComplex cuComplexDoubleToFloat(cuDoubleComplex a) { return {float(a.x), float(a.y)}; }
static inline cuDoubleComplex cuComplexFloatToDouble(cuFloatComplex a) { return {a.x, a.y}; }

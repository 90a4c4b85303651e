// CUDA's functions of numbers: floating point, conversions, integers, and the lanes of a word. Exact where a GPU is; else within
// the errors that NVIDIA documents. Source: CUDA Math API Reference Manual; CUDA C++ Programming Guide, "Mathematical Functions".
#pragma once

#include <fenv.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>

#define MINIRES_EXTREME(name, op)                                                               \
    template <class A, class B> static inline std::common_type_t<A, B> name(A a, B b) {         \
        if constexpr (std::is_floating_point_v<std::common_type_t<A, B>>) return f##name(a, b); \
        else return a op b ? a : b;                                                             \
    }
MINIRES_EXTREME(max, >) MINIRES_EXTREME(min, <)

template <class To, class From> static inline To minires_bits(From x) {
    static_assert(sizeof(To) == sizeof(From));
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}
#define MINIRES_BITS(name, To, From) static inline To name(From x) { return minires_bits<To>(x); }
MINIRES_BITS(__int_as_float, float, int) MINIRES_BITS(__uint_as_float, float, unsigned)
MINIRES_BITS(__float_as_int, int, float) MINIRES_BITS(__float_as_uint, unsigned, float)
MINIRES_BITS(__longlong_as_double, double, long long) MINIRES_BITS(__double_as_longlong, long long, double)

static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float rsqrt(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
static inline float __fdividef(float x, float y) { return x / y; }
static inline float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }  // NaN becomes 0
static inline double sinpi(double x) {  // the zeros of both are exact
    const double t = remainder(x, 2.0);
    return sin(3.14159265358979323846 * (fabs(t) > 0.5 ? copysign(1.0, t) - t : t));
}
static inline double cospi(double x) { return sin(3.14159265358979323846 * (0.5 - fabs(remainder(x, 2.0)))); }
static inline double normcdf(double x) {  // x / sqrt(2), whose error would count many times, in two parts
    const double t = -0.70710678118654752440 * x, rest = fma(-0.70710678118654752440, x, -t) + 4.8336466567264567e-17 * x;
    return fabs(x) < 40 ? 0.5 * (erfc(t) - 1.12837916709551257390 * exp(-t * t) * rest) : 0.5 * erfc(t);
}
static inline double erfcx(double x) {
    if (x > 25) {  // 1 / (x sqrt(pi)) (1 - 1 / 2x^2 + 3 / 4x^4 ...)
        const double h = 0.5 / x / x;
        return 0.56418958354775628695 / x * (1 - h * (1 - 3 * h * (1 - 5 * h * (1 - 7 * h * (1 - 9 * h)))));
    }
    const double square = x * x, rest = fma(x, x, -square);
    return x < -26.7 ? 1.0 / 0.0 : exp(square) * erfc(x) * (1 + rest);
}
static inline double minires_inverse(double p, double q) {  // erf(x) = p, erfc(x) = q = 1 - p, not below 0: Halley's method
    if (!(q > 0 && q <= 1)) return q == 0 ? 1.0 / 0.0 : 0.0 / 0.0;
    double x = q < 0.5 ? sqrt(-log(q * sqrt(-log(q)))) : 0.886 * p;
    for (int i = 0; i < 6; ++i) {
        const double f = (q < 0.5 ? erfc(x) - q : p - erf(x)) * 0.88622692545275801365 * exp(x * x);
        x += f / (1 - x * f);
    }
    return x;
}
static inline double erfcinv(double y) { return y > 1 ? -minires_inverse(y - 1, 2 - y) : minires_inverse(1 - y, y); }
static inline double erfinv(double y) { return copysign(minires_inverse(fabs(y), 1 - fabs(y)), y); }
static inline double normcdfinv(double p) { return -1.41421356237309504880 * erfcinv(2 * p); }
static inline double minires_bessel(int order, double x) {  // I0 or I1
    const double a = fabs(x);
    long double sum = 0, term = order ? a / 2.0L : 1.0L;
    if (a < 40) {  // (x / 2)^(2k + order) / (k! (k + order)!)
        for (int k = 0; term > sum * 1e-20L; term *= a * (long double)a / 4 / (k + 1) / (k + 1 + order), ++k) sum += term;
        return x < 0 && order ? -double(sum) : double(sum);
    }
    term = 1;  // e^x / sqrt(2 pi x) times a series in 1 / x
    for (int k = 1; fabsl(term) > 1e-20L; ++k) {
        sum += term;
        term *= ((2 * k - 1) * (2 * k - 1) - 4 * order * order) / (8.0L * k * a);
    }
    const double half = exp(a / 2), result = half * (double(sum) / sqrt(6.28318530717958647693 * a)) * half;
    return x < 0 && order ? -result : result;
}
static inline double cyl_bessel_i0(double x) { return isinf(x) ? 1.0 / 0.0 : minires_bessel(0, x); }
static inline double cyl_bessel_i1(double x) { return isinf(x) ? x : minires_bessel(1, x); }
#define MINIRES_FLOAT(name) static inline float name##f(float x) { return float(name(double(x))); }
MINIRES_FLOAT(erfcx) MINIRES_FLOAT(erfcinv) MINIRES_FLOAT(erfinv) MINIRES_FLOAT(normcdf) MINIRES_FLOAT(normcdfinv)
MINIRES_FLOAT(cyl_bessel_i0) MINIRES_FLOAT(cyl_bessel_i1) MINIRES_FLOAT(sinpi) MINIRES_FLOAT(cospi)
#define MINIRES_NORMS(T, f)                                                                                                   \
    static inline T norm##f(int n, const T* x) {                                                                              \
        double length = 0;                                                                                                    \
        for (int i = 0; i < n; ++i) length = hypot(length, double(x[i]));                                                     \
        return T(length);                                                                                                     \
    }                                                                                                                         \
    static inline T rnorm##f(int n, const T* x) { return 1 / norm##f(n, x); }                                                 \
    static inline T norm3d##f(T x, T y, T z) { return T(hypot(hypot(double(x), double(y)), double(z))); }                     \
    static inline T rnorm3d##f(T x, T y, T z) { return T(1 / hypot(hypot(double(x), double(y)), double(z))); }                \
    static inline T norm4d##f(T x, T y, T z, T w) { return T(hypot(hypot(double(x), y), hypot(double(z), w))); }              \
    static inline T rnorm4d##f(T x, T y, T z, T w) { return T(1 / hypot(hypot(double(x), y), hypot(double(z), w))); }         \
    static inline T rhypot##f(T x, T y) { return T(1 / hypot(double(x), double(y))); }                                        \
    static inline T rcbrt##f(T x) { return T(1 / cbrt(double(x))); }                                                          \
    static inline T fdivide##f(T x, T y) { return x / y; }                                                                    \
    static inline void sincospi##f(T x, T* s, T* c) { *s = T(sinpi(x)), *c = T(cospi(x)); }
MINIRES_NORMS(double, ) MINIRES_NORMS(float, f)
#define __expf expf  // macros: glibc declares some of these names for itself
#define __exp10f(x) powf(10.0f, x)
#define __logf logf
#define __log2f log2f
#define __log10f log10f
#define __powf(x, y) exp2f((y) * log2f(x))
#define __sinf sinf
#define __cosf cosf
#define __tanf tanf
#define __tanhf tanhf
#define __sincosf sincosf

// Without fusing or reordering; rounded to nearest, towards zero, up or down.
#define MINIRES_ROUNDED_TO(T, name, mode, expression)          \
    static inline T name(T a, T b = 0, T c = 0) {              \
        volatile T x = a, y = b, z = c;                        \
        const int before = fegetround();                       \
        if (mode != FE_TONEAREST) fesetround(mode);            \
        volatile T result = expression;                        \
        if (mode != FE_TONEAREST) fesetround(before);          \
        return result;                                         \
    }
#define MINIRES_ROUNDED(T, name, expression)                   \
    MINIRES_ROUNDED_TO(T, name##_rn, FE_TONEAREST, expression) \
    MINIRES_ROUNDED_TO(T, name##_rz, FE_TOWARDZERO, expression) \
    MINIRES_ROUNDED_TO(T, name##_ru, FE_UPWARD, expression)    \
    MINIRES_ROUNDED_TO(T, name##_rd, FE_DOWNWARD, expression)
#define MINIRES_ARITHMETIC(T, prefix)        \
    MINIRES_ROUNDED(T, prefix##add, x + y)   \
    MINIRES_ROUNDED(T, prefix##sub, x - y)   \
    MINIRES_ROUNDED(T, prefix##mul, x * y)   \
    MINIRES_ROUNDED(T, prefix##div, x / y)   \
    MINIRES_ROUNDED(T, prefix##rcp, T(1) / x) \
    MINIRES_ROUNDED(T, prefix##sqrt, sqrt(T(x)))
MINIRES_ARITHMETIC(float, __f) MINIRES_ARITHMETIC(double, __d)
MINIRES_ROUNDED(float, __fmaf, fmaf(x, y, z)) MINIRES_ROUNDED(float, __fmaf_ieee, fmaf(x, y, z))
MINIRES_ROUNDED(double, __fma, fma(x, y, z))
static inline float __frsqrt_rn(float x) { return float(1.0 / sqrt(double(x))); }

// Conversions as __float2int_rn: to nearest even, towards zero, up, down; out of range they saturate, as on a GPU.
template <class To, class From> static inline To minires_convert(From x) {
    if (x != x) return sizeof(To) == 8 || sizeof(From) == 8 ? To(1ull << (8 * sizeof(To) - 1)) : To(0);  // as PTX's cvt has it
    constexpr To lowest = std::is_signed_v<To> ? To(1ull << (8 * sizeof(To) - 1)) : To(0);
    constexpr To highest = To(~lowest);
    return x <= From(lowest) ? lowest : x >= From(highest) ? highest : To(x);
}
template <class To, class From> static inline To minires_rounded(From from, int mode) {
    const int before = fegetround();
    volatile From x = from;
    fesetround(mode);
    volatile To result = To(x);
    fesetround(before);
    return result;
}
#define MINIRES_ROUNDED_FROM(from, From, to, To)                                                               \
    static inline To __##from##2##to##_rn(From x) { return To(x); }                                            \
    static inline To __##from##2##to##_rz(From x) { return minires_rounded<To>(x, FE_TOWARDZERO); }            \
    static inline To __##from##2##to##_ru(From x) { return minires_rounded<To>(x, FE_UPWARD); }                \
    static inline To __##from##2##to##_rd(From x) { return minires_rounded<To>(x, FE_DOWNWARD); }
#define MINIRES_CONVERSION(from, to, To)                                                                       \
    static inline To __##from##2##to##_rn(from x) { return minires_convert<To>(std::rint(x)); }                \
    static inline To __##from##2##to##_rz(from x) { return minires_convert<To>(std::trunc(x)); }               \
    static inline To __##from##2##to##_ru(from x) { return minires_convert<To>(std::ceil(x)); }                \
    static inline To __##from##2##to##_rd(from x) { return minires_convert<To>(std::floor(x)); }               \
    MINIRES_ROUNDED_FROM(to, To, from, from)
#define MINIRES_CONVERSIONS(from)                                                                              \
    MINIRES_CONVERSION(from, int, int) MINIRES_CONVERSION(from, uint, unsigned) MINIRES_CONVERSION(from, ll, long long) \
    MINIRES_CONVERSION(from, ull, unsigned long long)
MINIRES_CONVERSIONS(float) MINIRES_CONVERSIONS(double) MINIRES_ROUNDED_FROM(double, double, float, float)
// lrint and its like saturate too; the host's do not.
#define MINIRES_TO_INTEGER(name, To, round)                                                                    \
    static inline To minires_##name(double x) { return minires_convert<To>(round(x)); }                        \
    static inline To minires_##name##f(float x) { return minires_convert<To>(round(x)); }                      \
    namespace std { using ::minires_##name, ::minires_##name##f; }
MINIRES_TO_INTEGER(lrint, long, std::rint) MINIRES_TO_INTEGER(llrint, long long, std::rint)
MINIRES_TO_INTEGER(lround, long, std::round) MINIRES_TO_INTEGER(llround, long long, std::round)
#define lrint minires_lrint
#define lrintf minires_lrintf
#define llrint minires_llrint
#define llrintf minires_llrintf
#define lround minires_lround
#define lroundf minires_lroundf
#define llround minires_llround
#define llroundf minires_llroundf
static inline int __double2hiint(double x) { return int(__double_as_longlong(x) >> 32); }
static inline int __double2loint(double x) { return int(__double_as_longlong(x)); }
static inline double __hiloint2double(int hi, int lo) { return __longlong_as_double((long long)hi << 32 | unsigned(lo)); }

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)(x)) : 64; }
static inline unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; ++i) y |= (x >> i & 1) << (31 - i);
    return y;
}
static inline unsigned long long __brevll(unsigned long long x) { return uint64_t(__brev(x)) << 32 | __brev(x >> 32); }
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const unsigned long long bytes = (unsigned long long)y << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) result |= unsigned(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
    return result;
}
static inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned n) { return (uint64_t(hi) << 32 | lo) << n % 32 >> 32; }
static inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned n) { return (uint64_t(hi) << 32 | lo) >> n % 32; }
static inline unsigned __funnelshift_lc(unsigned lo, unsigned hi, unsigned n) { return n < 32 ? __funnelshift_l(lo, hi, n) : lo; }
static inline unsigned __funnelshift_rc(unsigned lo, unsigned hi, unsigned n) { return n < 32 ? __funnelshift_r(lo, hi, n) : hi; }
static inline int __mul24(int x, int y) { return (x << 8 >> 8) * (y << 8 >> 8); }
static inline unsigned __umul24(unsigned x, unsigned y) { return (x & 0xffffff) * (y & 0xffffff); }
static inline int __mulhi(int x, int y) { return int((long long)x * y >> 32); }
static inline unsigned __umulhi(unsigned x, unsigned y) { return unsigned((unsigned long long)x * y >> 32); }
static inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) { return (unsigned __int128)x * y >> 64; }
static inline long long __mul64hi(long long x, long long y) { return (long long)((__int128)x * y >> 64); }
static inline unsigned __sad(int x, int y, unsigned z) { return z + (x > y ? unsigned(x) - y : unsigned(y) - x); }
static inline unsigned __usad(unsigned x, unsigned y, unsigned z) { return z + (x > y ? x - y : y - x); }
static inline int __hadd(int x, int y) { return int(((long long)x + y) >> 1); }
static inline int __rhadd(int x, int y) { return int(((long long)x + y + 1) >> 1); }
static inline unsigned __uhadd(unsigned x, unsigned y) { return unsigned(((unsigned long long)x + y) >> 1); }
static inline unsigned __urhadd(unsigned x, unsigned y) { return unsigned(((unsigned long long)x + y + 1) >> 1); }
#define MINIRES_EXTREMES(T, prefix)                                      \
    static inline T prefix##min(T x, T y) { return min(x, y); }          \
    static inline T prefix##max(T x, T y) { return max(x, y); }
MINIRES_EXTREMES(unsigned, u) MINIRES_EXTREMES(long long, ll) MINIRES_EXTREMES(unsigned long long, ull)
static inline unsigned short __nv_bswap16(unsigned short x) { return __builtin_bswap16(x); }
static inline unsigned __nv_bswap32(unsigned x) { return __builtin_bswap32(x); }
static inline unsigned long long __nv_bswap64(unsigned long long x) { return __builtin_bswap64(x); }
static inline void __prof_trigger(int) {}

// Lanes of a word: four of 8 bits (name4) or two of 16 (name2). In an expression x, y and z are a lane of each word, L its type.

template <class T, class A, class B, class Sum> static inline Sum minires_dot(A a, B b, Sum sum, int first) {
    T x[4 / sizeof(T)];
    std::conditional_t<std::is_signed_v<T>, int8_t, uint8_t> y[4];
    memcpy(x, &a, 4), memcpy(y, &b, 4);
    unsigned total = unsigned(sum);
    for (T v : x) total += unsigned(v) * unsigned(y[first++]);
    return Sum(total);
}
#define MINIRES_DOT(name, bits, first, A, B)                                                                                \
    static inline int name(int a, int b, int c) { return minires_dot<int##bits##_t>(a, b, c, first); }                      \
    static inline int name(A a, B b, int c) { return minires_dot<int##bits##_t>(a, b, c, first); }                          \
    static inline unsigned name(unsigned a, unsigned b, unsigned c) { return minires_dot<uint##bits##_t>(a, b, c, first); } \
    static inline unsigned name(u##A a, u##B b, unsigned c) { return minires_dot<uint##bits##_t>(a, b, c, first); }
MINIRES_DOT(__dp4a, 8, 0, char4, char4) MINIRES_DOT(__dp2a_lo, 16, 0, short2, char4) MINIRES_DOT(__dp2a_hi, 16, 2, short2, char4)

template <class L, class F> static inline unsigned minires_lanes(unsigned a, unsigned b, unsigned c, F f) {
    unsigned result = 0;
    for (unsigned at = 0; at < 32; at += 8 * sizeof(L))
        result |= unsigned(std::make_unsigned_t<L>(f(L(a >> at), L(b >> at), L(c >> at)))) << at;
    return result;
}
template <class L> static inline int minires_clip(int x) {
    constexpr int least = std::is_signed_v<L> ? -(1 << (8 * sizeof(L) - 1)) : 0, most = least + (1 << 8 * sizeof(L)) - 1;
    return x < least ? least : x > most ? most : x;
}
template <class L> static inline unsigned minires_sad(unsigned a, unsigned b) {
    unsigned sum = 0;
    minires_lanes<L>(a, b, 0, [&](int x, int y, int) { return sum += unsigned(abs(x - y)); });
    return sum;
}
#define MINIRES_LANES(R, name, T, e, ...)                                                                  \
    static inline R name(__VA_ARGS__) {                                                                    \
        using L = T;                                                                                       \
        return R(minires_lanes<L>(a, b, c, [](L x, L y, L z) { return (void)x, (void)y, (void)z, L(e); })); \
    }
#define MINIRES_UNARY(name, e)                                                                             \
    MINIRES_LANES(unsigned, name##2, int16_t, e, unsigned a, unsigned b = 0, unsigned c = 0)               \
    MINIRES_LANES(unsigned, name##4, int8_t, e, unsigned a, unsigned b = 0, unsigned c = 0)
#define MINIRES_BINARY(name, T, e)                                                                         \
    MINIRES_LANES(unsigned, name##2, T##16_t, e, unsigned a, unsigned b, unsigned c = 0)                   \
    MINIRES_LANES(unsigned, name##4, T##8_t, e, unsigned a, unsigned b, unsigned c = 0)
#define MINIRES_COMPARE(name, T, op) MINIRES_BINARY(__vcmp##name, T, -(x op y)) MINIRES_BINARY(__vset##name, T, x op y)
#define MINIRES_SAD(name, T)                                                                               \
    static inline unsigned name##2(unsigned a, unsigned b) { return minires_sad<T##16_t>(a, b); }          \
    static inline unsigned name##4(unsigned a, unsigned b) { return minires_sad<T##8_t>(a, b); }
MINIRES_UNARY(__vabs, abs(x)) MINIRES_UNARY(__vabsss, minires_clip<L>(abs(x)))
MINIRES_UNARY(__vneg, -x) MINIRES_UNARY(__vnegss, minires_clip<L>(-x))
MINIRES_BINARY(__vadd, int, x + y) MINIRES_BINARY(__vaddss, int, minires_clip<L>(x + y))
MINIRES_BINARY(__vsub, int, x - y) MINIRES_BINARY(__vsubss, int, minires_clip<L>(x - y))
MINIRES_BINARY(__vaddus, uint, minires_clip<L>(x + y)) MINIRES_BINARY(__vsubus, uint, minires_clip<L>(x - y))
MINIRES_BINARY(__vabsdiffs, int, abs(x - y)) MINIRES_BINARY(__vabsdiffu, uint, abs(x - y))
MINIRES_BINARY(__vavgs, int, (x + y + (x + y >= 0)) >> 1) MINIRES_BINARY(__vavgu, uint, (x + y + 1) >> 1)
MINIRES_BINARY(__vhaddu, uint, (x + y) >> 1) MINIRES_SAD(__vsads, int) MINIRES_SAD(__vsadu, uint)
MINIRES_BINARY(__vmins, int, min(x, y)) MINIRES_BINARY(__vminu, uint, min(x, y))
MINIRES_BINARY(__vmaxs, int, max(x, y)) MINIRES_BINARY(__vmaxu, uint, max(x, y))
MINIRES_COMPARE(eq, int, ==) MINIRES_COMPARE(ne, int, !=) MINIRES_COMPARE(ges, int, >=) MINIRES_COMPARE(geu, uint, >=)
MINIRES_COMPARE(gts, int, >) MINIRES_COMPARE(gtu, uint, >) MINIRES_COMPARE(les, int, <=) MINIRES_COMPARE(leu, uint, <=)
MINIRES_COMPARE(lts, int, <) MINIRES_COMPARE(ltu, uint, <)

// For dynamic programming: whole words, or two lanes; _relu: or 0, if that is more.
#define MINIRES_RELU(name, e, ...)                                                                         \
    MINIRES_LANES(int, name##_s32_relu, int, max(L(e), L(0)), __VA_ARGS__)                                 \
    MINIRES_LANES(unsigned, name##_s16x2_relu, int16_t, max(L(e), L(0)), __VA_ARGS__)
#define MINIRES_THREE(name, e)                                                                             \
    MINIRES_LANES(int, name##_s32, int, e, unsigned a, unsigned b, unsigned c)                             \
    MINIRES_LANES(unsigned, name##_u32, unsigned, e, unsigned a, unsigned b, unsigned c)                   \
    MINIRES_LANES(unsigned, name##_s16x2, int16_t, e, unsigned a, unsigned b, unsigned c)                  \
    MINIRES_LANES(unsigned, name##_u16x2, uint16_t, e, unsigned a, unsigned b, unsigned c)                 \
    MINIRES_RELU(name, e, unsigned a, unsigned b, unsigned c)
#define MINIRES_CHOICE(name, T, R, op)                                                                     \
    static inline R name##32(R a, R b, bool* first) { return (*first = a op b) ? a : b; }                  \
    static inline unsigned name##16x2(unsigned a, unsigned b, bool* high, bool* low) {                     \
        *high = T(a >> 16) op T(b >> 16), *low = T(a) op T(b);                                             \
        return ((*high ? a : b) & 0xffff0000u) | ((*low ? a : b) & 0xffffu);                               \
    }
MINIRES_RELU(__vimax, max(x, y), unsigned a, unsigned b, unsigned c = 0)
MINIRES_RELU(__vimin, min(x, y), unsigned a, unsigned b, unsigned c = 0)
MINIRES_THREE(__vimax3, max(max(x, y), z)) MINIRES_THREE(__vimin3, min(min(x, y), z))
MINIRES_THREE(__viaddmax, max(L(unsigned(x) + unsigned(y)), z)) MINIRES_THREE(__viaddmin, min(L(unsigned(x) + unsigned(y)), z))
MINIRES_CHOICE(__vibmax_s, int16_t, int, >=) MINIRES_CHOICE(__vibmax_u, uint16_t, unsigned, >=)
MINIRES_CHOICE(__vibmin_s, int16_t, int, <=) MINIRES_CHOICE(__vibmin_u, uint16_t, unsigned, <=)

// PTX's instructions as functions of C++, for the programs that ptx.py makes. A register is an unsigned integer of its size,
// or a bool; T is an instruction's type. Semantics: NVIDIA, "Parallel Thread Execution ISA", 9.7, by the instruction's name.
// `approx` ones are exact to a rounding, which is within the error that is documented for each.
#if !defined(__clang__)
#pragma GCC optimize("O1", "fp-contract=off")  // a multiplication and an addition are fused where PTX says fma and nowhere else
#else
#pragma clang fp contract(off)
#endif
namespace ptx {
template <int N> struct Bytes { unsigned char at[N]; };  // a parameter
template <class T> using Unsigned = std::make_unsigned_t<T>;
template <int BYTES, bool SIGNED> struct Integer;
template <> struct Integer<4, false> { using type = uint32_t; };
template <> struct Integer<4, true> { using type = int32_t; };
template <> struct Integer<8, false> { using type = uint64_t; };
template <> struct Integer<8, true> { using type = int64_t; };
template <> struct Integer<16, false> { using type = unsigned __int128; };
template <> struct Integer<16, true> { using type = __int128; };
template <class T> using Wide = typename Integer<2 * sizeof(T), std::is_signed_v<T>>::type;
template <class T> constexpr bool is_float = std::is_floating_point_v<T>;

template <class T> static inline T peek(const void* from) {
    T value;
    memcpy(&value, from, sizeof value);
    return value;
}
template <class T, class B> static inline T as(B bits) {  // the bits of a register, taken as a T
    if constexpr (is_float<B>) return T(peek<typename Integer<sizeof(B), false>::type>(&bits));
    else if constexpr (is_float<T>) {
        const typename Integer<sizeof(T), false>::type whole = bits;
        return peek<T>(&whole);
    } else return T(bits);
}
template <class D, class T> static inline void set(D& d, T value) { d = as<D>(value); }
#define PTX_IN_MEMORY(type) typedef type type##_ __attribute__((may_alias));
PTX_IN_MEMORY(float) PTX_IN_MEMORY(double) PTX_IN_MEMORY(bool)
PTX_IN_MEMORY(int8_t) PTX_IN_MEMORY(int16_t) PTX_IN_MEMORY(int32_t) PTX_IN_MEMORY(int64_t)
PTX_IN_MEMORY(uint8_t) PTX_IN_MEMORY(uint16_t) PTX_IN_MEMORY(uint32_t) PTX_IN_MEMORY(uint64_t)

// Memory. Shared memory begins at address 0; a generic address is the host's.
static __thread unsigned char shared[98304] __attribute__((aligned(1024)));
static __thread uint64_t shared_bytes, dynamic_at, dynamic_bytes;
static inline void enter(uint64_t bytes, uint64_t dynamic) {
    dynamic_at = (bytes + 15) / 16 * 16, dynamic_bytes = dynamic;
    shared_bytes = dynamic ? dynamic_at + dynamic : bytes;
    if ((threadIdx.x | threadIdx.y | threadIdx.z) == 0) memset(shared, 255, shared_bytes);  // NaN
}
[[noreturn]] static inline void fault(int line, const char* what, uint64_t address, int bytes) {
    char text[160];
    snprintf(text, sizeof text, "%s: %d bytes at address 0x%llx", what, bytes, (unsigned long long)address);
    minires::stop("PTX", line, text);
}
template <int BYTES> static inline unsigned char* generic(uint64_t address, int line) {
    if (address % BYTES) fault(line, "misaligned address", address, BYTES);
    if (address < 4096) fault(line, "illegal address", address, BYTES);
    return reinterpret_cast<unsigned char*>(address);
}
template <int BYTES> static inline unsigned char* in_shared(uint64_t address, int line) {
    if (address % BYTES) fault(line, "misaligned address in shared memory", address, BYTES);
    if (address + BYTES > shared_bytes) fault(line, "an address outside of the launch's shared memory", address, BYTES);
    return shared + address;
}
static inline uint64_t to_generic(uint64_t address) { return uint64_t(shared) + address; }
static inline uint64_t to_shared(uint64_t address) { return address - uint64_t(shared); }
static inline bool is_shared(uint64_t address) { return to_shared(address) < sizeof shared; }
template <class T> static inline void store(unsigned char* to, T value) { memcpy(to, &value, sizeof value); }
template <class T, class F> static inline T update(unsigned char* at, F f) {  // of one OS thread's launch: nothing comes between
    const T old = peek<T>(at);
    store(at, T(f(old)));
    return old;
}

// Arithmetic; ptx.py asks for add, sub, mul.lo, ... of integers with unsigned types, where they wrap.
#define PTX_1(name, ...) template <class T> static inline T name(T a) { return T(__VA_ARGS__); }
#define PTX_2(name, ...) template <class T> static inline T name(T a, T b) { return T(__VA_ARGS__); }
#define PTX_3(name, ...) template <class T> static inline T name(T a, T b, T c) { return T(__VA_ARGS__); }
#define PTX_SHIFT(name, ...) template <class T> static inline T name(T a, uint32_t n) { return T(__VA_ARGS__); }
#define PTX_COUNT(name, ...) template <class T> static inline uint32_t name(T a) { return __VA_ARGS__; }
PTX_1(neg, -a) PTX_1(not_, std::is_same_v<T, bool> ? !a : ~a) PTX_1(cnot, a == 0)
PTX_1(abs, a < 0 || (is_float<T> && std::signbit(a)) ? -a : a)
PTX_2(add, a + b) PTX_2(sub, a - b) PTX_2(mul, a * b)  // as PLAIN of ptx.py, rounded in other ways
PTX_2(mul_hi, Wide<T>(a) * b >> 8 * sizeof(T)) PTX_3(mad_hi, T(Wide<T>(a) * b >> 8 * sizeof(T)) + c)
PTX_3(fma, std::fma(a, b, c))
template <class T> static inline Wide<T> mad_wide(T a, T b, Wide<T> c) { return Unsigned<Wide<T>>(Wide<T>(a) * b) + c; }
PTX_2(mul24_lo, (a << 8 >> 8) * (b << 8 >> 8)) PTX_3(sad, c + (a > b ? Unsigned<T>(a) - b : Unsigned<T>(b) - a))
template <class T> static inline T div(T a, T b) {
    if constexpr (is_float<T>) return a / b;
    else return b == 0 ? T(-1) : std::is_signed_v<T> && b == T(-1) ? T(-Unsigned<T>(a)) : T(a / b);  // by 0: what GPUs give
}
PTX_2(rem, b == 0 ? a : std::is_signed_v<T> && b == T(-1) ? 0 : a % b)
template <class T> static inline bool before(T a, T b) { return a < b || (is_float<T> && a == b && std::signbit(a)); }
PTX_2(min, a != a ? b : b != b || before(a, b) ? a : b) PTX_2(max, a != a ? b : b != b || before(b, a) ? a : b)
PTX_1(rcp, 1 / a) PTX_1(sqrt, std::sqrt(a)) PTX_1(rsqrt, 1 / std::sqrt(a)) PTX_1(tanh, std::tanh(a))
PTX_1(ex2, std::exp2(a)) PTX_1(lg2, std::log2(a)) PTX_1(sin, std::sin(a)) PTX_1(cos, std::cos(a))
PTX_2(copysign, std::copysign(b, a))
PTX_1(ftz, std::fpclassify(a) == FP_SUBNORMAL ? std::copysign(T(0), a) : a)
PTX_1(saturated, a > 0 ? a < 1 ? a : T(1) : T(0))
PTX_1(upper, as<T>(peek<uint64_t>(&a) >> 32 << 32))  // of the ftz approximations in double: the low half is 0
PTX_SHIFT(shl, n >= 8 * sizeof(T) ? 0 : a << n)
PTX_SHIFT(shr, a >> (n < 8 * sizeof(T) ? n : 8 * sizeof(T) - 1) >> (n >= 8 * sizeof(T)))
PTX_COUNT(popc, __builtin_popcountll(a))
PTX_COUNT(clz, a ? __builtin_clzll(a) - 64 + 8 * sizeof(T) : 8 * sizeof(T))
PTX_COUNT(bfind_shiftamt, a == 0 || (std::is_signed_v<T> && a == T(-1)) ? ~0u : __builtin_clzll(a < 0 ? ~a : a) - 64 + 8 * sizeof(T))
PTX_COUNT(bfind, a == 0 || (std::is_signed_v<T> && a == T(-1)) ? ~0u : 63 - __builtin_clzll(a < 0 ? ~a : a))
template <class T> static inline T brev(T a) {
    T r = 0;
    for (unsigned i = 0; i < 8 * sizeof(T); ++i) r |= (a >> i & 1) << (8 * sizeof(T) - 1 - i);
    return r;
}
template <class T> static inline T bfe(T a, uint32_t position, uint32_t length) {
    position &= 255, length &= 255;
    if (length == 0) return 0;
    const unsigned bits = 8 * sizeof(T), last = position + length - 1 < bits - 1 ? position + length - 1 : bits - 1;
    if (position >= bits) return std::is_signed_v<T> ? shr(a, bits - 1) : 0;
    return shr(T(Unsigned<T>(a) << (bits - 1 - last)), bits - 1 - last + position);
}
template <class T> static inline T bfi(T a, T b, uint32_t position, uint32_t length) {
    const T ones = length >= 8 * sizeof(T) ? T(-1) : (T(1) << length) - 1, mask = shl(ones, position);
    return (b & ~mask) | (shl(a, position) & mask);
}
template <class T> static inline T lop3(T a, T b, T c, T table) {
    uint32_t r = 0;
    for (int i = 0; i < 8; ++i) r |= table >> i & 1 ? (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c) : 0;
    return r;
}
template <class T> static inline T prmt(T a, T b, T selector) {
    const uint64_t bytes = uint64_t(b) << 32 | a;
    uint32_t r = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned which = selector >> 4 * i, byte = bytes >> 8 * (which & 7) & 255;
        r |= (which & 8 ? byte >> 7 ? 255 : 0 : byte) << 8 * i;
    }
    return r;
}
static inline uint32_t shf_l(uint32_t a, uint32_t b, uint32_t n) { return uint32_t((uint64_t(b) << 32 | a) << n >> 32); }
static inline uint32_t shf_r(uint32_t a, uint32_t b, uint32_t n) { return uint32_t((uint64_t(b) << 32 | a) >> n); }
static inline uint32_t wrap(uint32_t n) { return n & 31; }
static inline uint32_t clamp(uint32_t n) { return n < 32 ? n : 32; }
template <class T> static inline T dp2a(T a, T b, T c, int first) {
    for (int i = 0; i < 2; ++i) {
        using Half = std::conditional_t<std::is_signed_v<T>, int16_t, uint16_t>;
        using Byte = std::conditional_t<std::is_signed_v<T>, int8_t, uint8_t>;
        c = T(uint32_t(c) + uint32_t(Half(a >> 16 * i)) * uint32_t(Byte(b >> 8 * (first + i))));
    }
    return c;
}
template <class T> static inline T dp2a_lo(T a, T b, T c) { return dp2a(a, b, c, 0); }
template <class T> static inline T dp2a_hi(T a, T b, T c) { return dp2a(a, b, c, 2); }
template <class Lane> static inline uint32_t vabsdiff(uint32_t a, uint32_t b, uint32_t c, bool adds) {
    uint32_t lanes = 0;
    for (unsigned at = 0; at < 32; at += 8 * sizeof(Lane)) {
        const uint32_t x = Lane(a >> at), y = Lane(b >> at), difference = x < y ? y - x : x - y;
        lanes |= difference << at, c += difference;
    }
    return adds ? c : lanes;
}
template <class T> static inline T dp4a(T a, T b, T c) {
    for (int i = 0; i < 32; i += 8)
        if constexpr (std::is_signed_v<T>) c += int8_t(a >> i) * int8_t(b >> i);
        else c += (a >> i & 255) * (b >> i & 255);
    return c;
}

// Conversions, and what is rounded in another direction, as <fenv.h> names it.
template <class T> static inline T opaque(T a) {
    volatile T x = a;
    return x;
}
template <int R, class F, class... A> static inline auto rounding(F f, A... a) {
    if constexpr (R == FE_TONEAREST) return f(a...);
    const int before = fegetround();
    fesetround(R);
    const auto result = opaque(f(opaque(a)...));
    fesetround(before);
    return result;
}
template <class D, class S> static inline D whole(S r) {  // saturates; so does NaN, in its way
    if (r != r) return sizeof(S) == 8 || sizeof(D) == 8 ? D(Unsigned<D>(1) << (8 * sizeof(D) - 1)) : D(0);
    constexpr D low = std::is_signed_v<D> ? D(Unsigned<D>(1) << (8 * sizeof(D) - 1)) : D(0), high = D(~low);
    return r <= S(low) ? low : r >= S(high) ? high : D(r);
}
template <class D, class S> static inline D clamped(S a) {
    constexpr D low = std::is_signed_v<D> ? D(Unsigned<D>(1) << (8 * sizeof(D) - 1)) : D(0), high = D(~low);
    return __int128(a) < __int128(low) ? low : __int128(a) > __int128(high) ? high : D(a);
}

// What the lanes of a warp do together
static inline uint32_t lane() { return minires::lane(); }
struct Lane { uint32_t lane; bool is_valid; };
template <class F>
static inline uint32_t shfl(uint32_t mask, uint32_t value, uint32_t c, bool& valid, const char* file, int line, F source) {
    const uint32_t self = lane(), segment = c >> 8 & 31, least = self & segment, most = least | (c & 31 & ~segment);
    const Lane from = source(self, segment, least, most);
    const uint32_t lane = (valid = from.is_valid) ? from.lane : self;
    return uint32_t(minires::exchange(mask, value, file, line, lane)[lane]);
}
// f of the mask and of its lanes whose value is the wanted one
template <class T, class F>
static inline auto select(uint32_t mask, T wanted, T value, const char* file, int line, F f) {
    return f(mask, uint32_t(minires::select(mask, value, file, line, [&](T other) { return other == wanted; })));
}
static inline uint32_t bar_popc(bool p, const char* file, int line) { return minires_vote(&minires_now, p, line, file, line); }
static inline bool bar_or(bool p, const char* file, int line) { return bar_popc(p, file, line) != 0; }
static inline bool bar_and(bool p, const char* file, int line) { return bar_popc(!p, file, line) == 0; }

// What PTX calls and the host has: a failed assertion, and `vprintf`, whose arguments lie in memory as C promotes them.
[[noreturn]] static inline void assertion(unsigned char* what, unsigned char* file, unsigned char* line, void*, void*) {
    char text[300];
    snprintf(text, sizeof text, "assertion failed: %s", peek<const char*>(what));
    minires::stop(peek<const char*>(file), peek<int>(line), text);
}
static inline void allocate(unsigned char* result, unsigned char* size) { store(result, malloc(peek<size_t>(size))); }
static inline void release(unsigned char* pointer) { free(peek<void*>(pointer)); }
static inline void print(unsigned char* result, unsigned char* format, unsigned char* arguments) {
    const char* f = peek<const char*>(format);
    uint32_t count = 0;
    for (uint64_t at = peek<uint64_t>(arguments); *f;) {
        const size_t plain = strcspn(f, "%");
        fwrite(f, 1, plain, stdout);
        if (!*(f += plain)) break;
        const size_t length = f[1] == '%' ? 1 : 1 + strspn(f + 1, "-+ #0123456789.hlzjt");
        const char kind = f[length];
        char one[64];
        snprintf(one, sizeof one, "%.*s", int(length + 1), f);
        f += length + 1;
        if (kind == '%') { putchar('%'); continue; }
        const bool is_wide = strchr("aAeEfFgGps", kind) || strpbrk(one, "lzjt");
        at = is_wide ? (at + 7) & ~7ull : at;
        const void* const from = reinterpret_cast<const void*>(at);
        if (strchr("aAeEfFgG", kind)) printf(one, peek<double>(from));
        else if (is_wide) printf(one, peek<uint64_t>(from));
        else printf(one, peek<uint32_t>(from));
        at += is_wide ? 8 : 4, ++count;
    }
    store(result, count);
}
}  // namespace ptx

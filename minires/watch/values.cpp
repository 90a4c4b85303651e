// Where a GPU computes another value than a CPU: what the compilers' -fsanitize= puts calls before, which this file answers in
// the place of their own runtime. Source of the layouts: LLVM, compiler-rt/lib/ubsan/ubsan_handlers.h.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine.h"

namespace {

using namespace watch;

struct Type {
    uint16_t kind, info;  // 0 is an integer, info 2 * log2(bits) + whether it has a sign; 1 is a float of `info` bits
    char name[1];
    int bits() const { return kind == 0 ? 1 << (info >> 1) : info; }
    bool is_signed() const { return info & 1; }
};
struct Place { const char* file; uint32_t line, column; };

template <class T> T bits_of(uintptr_t value) {
    T number;
    memcpy(&number, &value, sizeof number);
    return number;
}
double number(const Type& type, uintptr_t value) {
    if (type.kind == 1) return type.bits() == 32 ? bits_of<float>(value) : bits_of<double>(value);
    const int unused = 64 - type.bits();
    return type.is_signed() ? double(int64_t(value << unused) >> unused) : double(value << unused >> unused);
}

// What cvt.rzi gives, of 32 or 64 bits, cut to the type.
long long saturated(double x, const Type& to, bool from_double) {
    const int bits = to.bits() < 32 ? 32 : to.bits();
    const double low = to.is_signed() ? -ldexp(1, bits - 1) : 0, high = ldexp(1, bits - to.is_signed());
    const uint64_t least = to.is_signed() ? 1ull << (bits - 1) : 0, most = to.is_signed() ? least - 1 : ~0ull >> (64 - bits);
    uint64_t whole = x <= low ? least : x >= high ? most : x < 0 ? uint64_t(int64_t(x)) : uint64_t(x);
    if (x != x) whole = from_double || bits == 64 ? 1ull << (bits - 1) : 0;
    const int unused = 64 - to.bits();
    return to.is_signed() ? int64_t(whole << unused) >> unused : int64_t(whole << unused >> unused);
}

}  // namespace

extern "C" {
void __ubsan_handle_float_cast_overflow(void* data, uintptr_t from) {
    const unsigned char* first = *static_cast<unsigned char**>(data);
    const bool has_place = !(first[0] + first[1] < 2 || first[0] == 255 || first[1] == 255);  // as LLVM's runtime tells them apart
    const Type* const* types = reinterpret_cast<const Type* const*>(static_cast<char*>(data) + (has_place ? sizeof(Place) : 0));
    const double x = number(*types[0], from);
    const char* const text = types[1]->is_signed() ? "%g does not fit %s; a CPU gives what it likes, a GPU %lld"
                                                   : "%g does not fit %s; a CPU gives what it likes, a GPU %llu";
    snprintf(report->text, sizeof report->text, text, x, types[1]->name, saturated(x, *types[1], types[0]->bits() == 64));
    fail_at("value", VALUE, __builtin_return_address(0));
}
void __ubsan_handle_shift_out_of_bounds(void* data, uintptr_t left, uintptr_t right) {
    const Type* const* types = reinterpret_cast<const Type* const*>(static_cast<char*>(data) + sizeof(Place));
    const double by = number(*types[1], right), x = number(*types[0], left);
    if (by >= 0 && by < types[0]->bits()) return;  // of a negative number, or into its sign: as on a GPU
    snprintf(report->text, sizeof report->text,
             "a shift of %.0f, %s, by %.0f; a CPU shifts by less, a GPU gives 0%s", x, types[0]->name, by,
             x < 0 ? ", to the right -1" : "");
    fail_at("value", VALUE, __builtin_return_address(0));
}
void __ubsan_handle_type_mismatch_v1(void* data, uintptr_t address) {
    const char* const after = static_cast<char*>(data) + sizeof(Place);
    const Type* const type = *reinterpret_cast<const Type* const*>(after);
    const uint64_t alignment = 1ull << static_cast<unsigned char>(after[sizeof(void*)]);
    if (address % alignment == 0) return;
    snprintf(report->text, sizeof report->text, "%s at an address that %llu does not divide, %llu bytes behind one that it does: misaligned on a GPU",
             type->name, (unsigned long long)alignment, (unsigned long long)(address % alignment));
    fail_at("mem", MEM, __builtin_return_address(0));
}
}

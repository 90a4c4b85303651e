// Switching between the stacks of fibers, one of which runs a CUDA thread.
#pragma once

#include <stddef.h>
#include <string.h>

namespace minires {

// Saves the caller's callee-saved registers on its stack, its stack pointer in *save, and continues at `to`.
#if defined(__x86_64__)
extern "C" __attribute__((visibility("hidden"))) void minires_switch(void** save, void* to);
asm(".text\n" MINIRES_SYMBOL("minires_switch") ":\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n  ret\n");
static void* first_context(char* top, void (*entry)()) {
    void** sp = reinterpret_cast<void**>(top);
    *--sp = nullptr;  // where `entry` would return to; also aligns its frame as a call would
    *--sp = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--sp = nullptr;
    return sp;
}
#elif defined(__aarch64__)
extern "C" __attribute__((visibility("hidden"))) void minires_switch(void** save, void* to);
asm(".text\n.p2align 2\n" MINIRES_SYMBOL("minires_switch") ":\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp, #0]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n"
    "  stp x25, x26, [sp, #48]\n  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n  str x9, [x0]\n  mov sp, x1\n"
    "  ldp x19, x20, [sp, #0]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n"
    "  ldp x25, x26, [sp, #48]\n  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n  ret\n");
static void* first_context(char* top, void (*entry)()) {
    void** sp = reinterpret_cast<void**>(top - 160);
    memset(sp, 0, 160);
    sp[11] = reinterpret_cast<void*>(entry);  // x30, the link register
    return sp;
}
#else
#error "the cpu device switches stacks on x86-64 and AArch64"
#endif

}  // namespace minires

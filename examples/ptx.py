"""PTX, what NVRTC makes of a kernel, as C++ for the CPU device: a GPU's own code, executed instruction by instruction.

Registers become variables, labels stay labels, and an instruction is a function of ptx.h; the scheduler of the CPU device
runs the threads. What is not known is a PtxError. Source: NVIDIA, "Parallel Thread Execution ISA", version 8.8.
"""

from __future__ import annotations

import math
import re
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path

HEADER = (Path(__file__).parent / "ptx.h").read_text()
KNOWN = {a or b for a, b in re.findall(r"\bPTX_[A-Z0-9]+\((\w+),|static inline [\w<>]+ (\w+)\(", HEADER)}
C_TYPES = {f"{k}{n}": f"{'' if k == 's' else 'u'}int{n}_t" for k in "sub" for n in (8, 16, 32, 64)}
C_TYPES |= {"f32": "float", "f64": "double", "pred": "bool"}
FLOATS = {"float": "f", "double": ""}  # and how a number of the type ends
SPECIAL = {"%laneid": "ptx::lane()", "%lanemask_eq": "(1u << ptx::lane())", "%lanemask_lt": "((1u << ptx::lane()) - 1)"}
SPECIAL |= {"%lanemask_le": "((2u << ptx::lane()) - 1)", "%lanemask_gt": "~((2u << ptx::lane()) - 1)"}
SPECIAL |= {"%lanemask_ge": "~((1u << ptx::lane()) - 1)", "%dynamic_smem_size": "ptx::dynamic_bytes"}
SPECIAL |= dict.fromkeys(("%clock", "%clock64", "%globaltimer"), "clock64()")
for _ptx, _cuda in {"tid": "threadIdx", "ntid": "blockDim", "ctaid": "blockIdx", "nctaid": "gridDim"}.items():
    SPECIAL |= {f"%{_ptx}.{axis}": f"{_cuda}.{axis}" for axis in "xyz"}
COMPARE = {"eq": "{0} == {1}", "lt": "{0} < {1}", "le": "{0} <= {1}", "gt": "{0} > {1}", "ge": "{0} >= {1}"}
COMPARE |= {"lo": COMPARE["lt"], "ls": COMPARE["le"], "hi": COMPARE["gt"], "hs": COMPARE["ge"]}  # without a sign
COMPARE |= {"ne": "({0} < {1} || {0} > {1})", "equ": "!({0} < {1} || {0} > {1})", "neu": "{0} != {1}"}  # u: or a NaN
COMPARE |= {"ltu": "!({0} >= {1})", "leu": "!({0} > {1})", "gtu": "!({0} <= {1})", "geu": "!({0} < {1})"}
COMPARE |= {"num": "({0} == {0} && {1} == {1})", "nan": "({0} != {0} || {1} != {1})"}
PLAIN = {"add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "mul_lo": "{0} * {1}", "mad_lo": "{0} * {1} + {2}"}
PLAIN |= {"and": "{0} & {1}", "or": "{0} | {1}", "xor": "{0} ^ {1}", "fma": "__builtin_fma{f}({0}, {1}, {2})"}
PLAIN |= {"mul_wide": "({W}){0} * {1}"}
COMBINE = {"and": "a & b", "or": "a | b", "xor": "a ^ b"}
REDUCE = COMBINE | {"add": "a + b", "min": "a < b ? a : b", "max": "a > b ? a : b"}
ATOMIC = REDUCE | {"exch": "b", "inc": "a >= b ? 0 : a + 1", "dec": "a == 0 || a > b ? b : a - 1", "cas": "a == b ? c : a"}
LANES = {"up": "l - n, int(l - n) >= int(most)", "down": "l + n, l + n <= most", "bfly": "l ^ n, (l ^ n) <= most"}
LANES |= {"idx": "least | (n & ~segment), (least | (n & ~segment)) <= most"}  # the lane that is read, and whether it may be
VOTES = {"ballot": "yes", "any": "yes != 0", "all": "yes == mask", "uni": "yes == mask || yes == 0"}
MATCHES = {"any": "same", "all": "(second = same == mask) ? mask : 0"}
ROUND = {"rn": "FE_TONEAREST", "rz": "FE_TOWARDZERO", "rm": "FE_DOWNWARD", "rp": "FE_UPWARD"}
WHOLE = {"rni": "std::rint", "rzi": "std::trunc", "rmi": "std::floor", "rpi": "std::ceil"}
# Operands (T of the instruction's type, W of twice its size, u of 32 bits, p a predicate, m a place in memory) and what is
# made of them, where that is no function of T alone. {here} is where the scheduler says that a thread waits.
FORMS = {
    **dict.fromkeys(("shl", "shr"), ("Tu", "")),
    "bfe": ("Tuu", ""), "bfi": ("TTuu", ""), "mad_wide": ("TTW", ""),
    "shf_l": ("uuu", "ptx::shf_l({0}, {1}, ptx::{what}({2}))"),
    "shf_r": ("uuu", "ptx::shf_r({0}, {1}, ptx::{what}({2}))"),
    "selp": ("TTp", "{2} ? {0} : {1}"),
    "activemask": ("", "uint32_t(minires::converge({here}))"),
    "shfl": ("uuuu", "ptx::shfl({3}, {0}, {2}, second, {here}, [n = {1} & 31](uint32_t l, uint32_t segment, uint32_t least,"
    " uint32_t most) {{ return ptx::Lane{{{LANES}}}; }})"),
    "vote": ("pu", "ptx::select({1}, 1u, uint32_t({0}), {here}, [](uint32_t mask, uint32_t yes) {{ return {VOTES}; }})"),
    "match": ("Tu", "ptx::select({1}, {0}, {0}, {here}, [&](uint32_t mask, uint32_t same) {{ return {MATCHES}; }})"),
    "redux": ("Tu", "minires::reduce({1}, {0}, {here}, []({T} a, {T} b) -> {T} {{ return {REDUCE}; }})"),
    "bar_red": ("up", "ptx::bar_{what}({1}, {here})"),
    "atom": ("mTT", "ptx::update<{T}>({0}, [=, b = {1}, c = {2}]({T} a) -> {T} {{ return {ATOMIC}; }})"),
    **{f"vabsdiff{n}": ("uuu", f"ptx::vabsdiff<uint{32 // n}_t>({{0}}, {{1}}, {{2}}, {{adds}})") for n in (2, 4)},
    "isspacep": ("a", "ptx::is_shared({0}) == {shared}"),
}  # fmt: skip
TABLES = {"LANES": LANES, "VOTES": VOTES, "MATCHES": MATCHES, "REDUCE": REDUCE, "ATOMIC": ATOMIC}
WRAPPING = ("add", "sub", "mul_lo", "mad_lo", "mad_hi", "neg", "shl", "bfi")  # integers' signs do not matter
MODIFIERS = {*C_TYPES, *COMPARE, *ATOMIC, *LANES, *VOTES, *ROUND, *WHOLE}
MODIFIERS |= {
    *re.findall(
        r"\w+",
        "param shared global const local nc v2 v4 volatile weak relaxed acquire release acq_rel gpu sys cta ca cg cs lu cv wb"
        " wt to uni sync aligned warp ftz sat approx full lo hi wide l r wrap clamp cc red popc shiftamt",
    )
}
HOST = {"vprintf": "print", "__assertfail": "assertion", "malloc": "allocate", "free": "release"}  # what the host does
IGNORED = ("membar", "fence", "prefetch", "prefetchu", "nanosleep", ".pragma", ".loc", ".file", ".callprototype")


class PtxError(ValueError):
    """PTX that is not understood, with its line."""


@dataclass
class Block:
    """Instructions that run one after another, each as often: its label, and operation, operands and line of each."""

    label: str
    instructions: list[tuple[str, list[str], int]] = field(default_factory=list)


@dataclass
class Program:
    """C++ for the CPU device, the sizes of each entry's parameters, and each entry's blocks.

    Each entry has a last parameter of 8 bytes, the bytes of dynamic shared memory. With `counted`, its blocks are counted in
    `counts_<entry>`, an array of unsigned long long.
    """

    code: str
    entries: dict[str, list[int]]
    blocks: dict[str, list[Block]]


_TOKEN = re.compile(
    r"\s*(?:\.(?:version|target|address_size)[^\n]*|(?P<brace>[{}])|(?P<label>[\w$]+)\s*:(?!:)"
    r"|(?P<function>(?:\.\w+\s+)*\.(?:entry|func)\b[^{;]*)|(?P<statement>(?:[^;{}]|\{[^{};]*\})+);|;|(?P<end>\s*$)|(?P<bad>.))"
)
_FUNCTION = re.compile(r"\.(?P<kind>entry|func)\s*(?:\((?P<result>[^)]*)\))?\s*(?P<name>[\w$]+)\s*(?:\((?P<rest>[^)]*)\))?")
_VARIABLE = re.compile(
    r"(?P<before>(?:\.(?:visible|extern|weak|common)\s+)*)\.(?P<space>global|const|shared|local|param)\s+"
    r"(?:\.align\s+(?P<align>\d+)\s+)?\.[a-z]*(?P<bits>\d+)\s+(?P<name>[\w$%]+)(?P<dims>(?:\s*\[\d*\])*)\s*"
    r"(?:=\s*(?P<value>.*))?$",
    re.DOTALL,
)


def split(text: str) -> list[str]:
    """At commas that stand in no brackets."""
    return [part.strip() for part in re.findall(r"(?:[^,{([]|\{[^}]*\}|\([^)]*\)|\[[^\]]*\])+", text) if part.strip()]


def identifier(name: str) -> str:
    """A register's or symbol's name in C++, which no keyword or header has."""
    return "r_" + re.sub(r"\W", "_", name.replace("%", "").replace("$", "S_"))


def literal(text: str) -> int | None:
    """The bits of a number."""
    if found := re.fullmatch(r"0[fFdD]([0-9a-fA-F]{8,16})", text):
        return int(found[1], 16)
    found = re.fullmatch(r"(-?)(?:(0[xX][0-9a-fA-F]+)|(\d+))U?", text)
    return found and int(f"{found[1]}{found[2] or found[3]}", 16 if found[2] else 10)


def size_of(variable: re.Match) -> int:
    """Bytes; 0 where they are known at the launch."""
    size = int(variable["bits"]) // 8
    for length in re.findall(r"\[(\d*)\]", variable["dims"]):
        size *= int(length or 0)
    return size


class Translator:
    """Reads PTX once from top to bottom. `program` is what came of it; raises PtxError."""

    def __init__(self, ptx: str, counted: bool = False) -> None:
        self.counted, self.out, self.body, self.labels = counted, [HEADER], [], {}
        self.registers: dict[str, str] = {}  # and the type of each
        self.shared, self.shared_end, self.dynamic = {}, 0, set()  # where variables begin
        self.program, self.function, self.line, depth, seen = Program("", {}, {}), None, 1, 0, 0
        text = re.sub(r"//[^\n]*|/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m[0]), ptx, flags=re.DOTALL)
        for token in _TOKEN.finditer(text):
            kind, part = token.lastgroup, token[token.lastgroup].strip() if token.lastgroup else ""
            start = token.end() - len(token[0].lstrip())
            self.line, seen = self.line + text.count("\n", seen, start), start
            if kind == "function":
                self.begin(_FUNCTION.search(part), text[token.end() : token.end() + 1] == ";")
            elif kind == "brace":
                depth += 1 if part == "{" else -1
                if depth > 1 or (depth == 1 and part == "}"):
                    self.body.append(part)
                elif depth == 0:
                    self.end()
            elif kind == "label":
                self.body.append(f"{identifier(part)}:;")
                self.block(part)
            elif kind == "statement":
                (self.directive if part.startswith(".") else self.instruction)(part)
            elif kind == "bad":
                raise self.error(text[token.start() : token.start() + 60])
        self.program.code = "\n".join(self.out) + "\n"

    def error(self, what: str) -> PtxError:
        return PtxError(f"PTX line {self.line}: {' '.join(what.split())!r} is not known")

    # -----------------------------------------------------------------------------------------------------------------
    # Functions and variables

    def begin(self, found: re.Match, is_declared: bool) -> None:
        parameters = []
        for text in split(f"{found['result'] or ''},{found['rest'] or ''}"):
            text = re.sub(r"\.ptr\b(?:\s*\.(?:global|shared|const|local))?(?:\s*\.align\s+\d+)?", "", text)
            if not (parameter := _VARIABLE.match(text)):
                raise self.error(text)
            parameters.append(parameter)
        self.function, name = found, found["name"]
        if found["kind"] == "entry":
            sizes = self.program.entries[name] = [size_of(p) for p in parameters]
            listed = ", ".join(f"ptx::Bytes<{size}> p{i}" for i, size in enumerate([*sizes, 8]))
            self.start = f'extern "C" __global__ void {name}({listed})'
            known = [f"const unsigned char* const {identifier(p['name'])} = p{i}.at;" for i, p in enumerate(parameters)]
        else:
            listed = ", ".join(f"unsigned char* {identifier(p['name'])}" for p in parameters)
            self.start, known = f"static void {identifier(name)}({listed})", []
        if is_declared:
            self.out += [f"{self.start};"] * (name not in HOST)
            self.function = None
            return
        self.outside = dict(self.shared), self.shared_end
        self.body, self.blocks = known, self.program.blocks.setdefault(name, [])
        self.block("")

    def end(self) -> None:
        name, entered = self.function["name"], []
        if self.function["kind"] == "entry":
            entered = [f"ptx::enter({self.shared_end}, ptx::peek<uint64_t>(p{len(self.program.entries[name])}.at));"]
            self.shared, self.shared_end = self.outside
        if self.counted:
            counts = f'__attribute__((visibility("default"))) unsigned long long counts_{name}[{len(self.blocks)}]'
            self.out.append(f'extern "C" {{ {counts}; }}')
            entered.append(f"unsigned long long* const counts = counts_{name};")
        self.out += [self.start, "{", *entered, "uint32_t carry = 0;", *self.body, "}"]
        self.body, self.function = [], None

    def block(self, label: str) -> None:
        if self.counted:
            self.body.append(f"++counts[{len(self.blocks)}];")
        self.blocks.append(Block(label))

    def directive(self, text: str) -> None:
        word, *rest = text.split(None, 2)
        if word == ".reg":
            names = []
            for name in split(rest[1]):
                many = re.fullmatch(r"([\w$%]+)<(\d+)>", name)
                names += [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name]
            kind = C_TYPES[rest[0][1:].replace("s", "u")]
            self.registers |= dict.fromkeys(names, kind)
            self.body.append(f"{kind} {', '.join(map(identifier, names))};")
        elif word == ".branchtargets":
            self.labels[self.blocks[-1].label] = split(text.partition(" ")[2])
        elif found := _VARIABLE.match(text):
            self.variable(found)
        elif word not in IGNORED:
            raise self.error(text)

    def variable(self, found: re.Match) -> None:
        name, size, align = found["name"], size_of(found), max(int(found["align"] or 0), int(found["bits"]) // 8)
        if found["space"] == "shared" and (size == 0 or "extern" in found["before"]):
            self.dynamic.add(name)
        elif found["space"] == "shared":
            self.shared[name] = -(-self.shared_end // align) * align
            self.shared_end = self.shared[name] + size
        else:
            values = [self.value(v, "uint64_t") for v in split((found["value"] or "").strip("{} "))]
            where, kind = (self.body, "") if self.function else (self.out, "static ")
            each = int(found["bits"])
            written = f" = {{{', '.join(f'uint{each}_t({v})' for v in values)}}}" if values else ""
            kind += f"uint{each}_t {identifier(name)}[{max(8 * size // each, 1)}]{written};"
            where.append(f"alignas({max(align, 8)}) {kind}")

    # -----------------------------------------------------------------------------------------------------------------
    # Operands

    def value(self, text: str, kind: str) -> str:
        """An operand, taken as a type of C++."""
        if text.startswith("!"):
            return f"!{self.value(text[1:], kind)}"
        if register := self.registers.get(text):
            is_bits = (kind in FLOATS) != (register in FLOATS) or (kind in FLOATS and kind != register)
            name = identifier(text)
            return name if kind == register else f"ptx::as<{kind}>({name})" if is_bits else f"({kind}){name}"
        if (bits := literal(text)) is None:
            return f"({kind}){self.address(text)}"
        if kind not in FLOATS:
            return f"({kind}){bits & 2**64 - 1}ull"
        (number,) = struct.unpack(kind[0], bits.to_bytes(4 if kind == "float" else 8, sys.byteorder))
        return f"{number.hex()}{FLOATS[kind]}" if math.isfinite(number) else f"ptx::as<{kind}>({bits}ull)"

    def address(self, text: str) -> str:
        """A register or a symbol, and a number added to it, as an integer."""
        if text in SPECIAL:
            return SPECIAL[text]
        if not (found := re.fullmatch(r"([\w$%.]+?)\s*(?:\+\s*(-?\w+))?", text)):
            raise self.error(text)
        name = found[1]
        base = self.shared.get(name, "ptx::dynamic_at" if name in self.dynamic else literal(name))
        if base is None and re.match(r"%\D*$|%\w+\.", name):
            raise self.error(name)
        return f"(uint64_t({identifier(name) if base is None else base}) + {literal(found[2] or '0')})"

    def place(self, operand: str, size: int) -> str:
        """Where `size` bytes of memory are, checked, as a pointer of the host."""
        inside = self.address(operand.strip("[] "))
        if "param" in self.mods:
            return f"(unsigned char*)({inside})"
        return f"ptx::{'in_shared' if 'shared' in self.mods else 'generic'}<{size}>({inside}, {self.line})"

    def to(self, register: str, expression: str, kind: str = "") -> str:
        """The assignment of an expression of a type: of the instruction's, where none is named."""
        if register == "_":
            return f"{expression};"
        kind, declared, name = kind or self.kind, self.registers[register], identifier(register)
        same = kind == declared or (kind not in FLOATS and declared not in FLOATS)
        return f"{name} = {expression};" if same else f"ptx::set({name}, {expression});"

    # -----------------------------------------------------------------------------------------------------------------
    # Instructions

    def instruction(self, text: str) -> None:
        negated, guard, operation, rest = re.match(r"(?:@(!?)([\w$%]+)\s+)?([\w.:]*)\s*(.*)$", text, re.DOTALL).groups()
        name, *self.mods = operation.replace("::cta", "").split(".")
        operands, types = split(rest), [m for m in self.mods if m in C_TYPES]
        self.blocks[-1].instructions.append((operation, operands, self.line))
        if name in IGNORED:
            return
        if not MODIFIERS.issuperset(self.mods):
            raise self.error(text)
        self.kind, self.size = (C_TYPES[types[-1]], int(types[-1].strip("subfpred") or 8) // 8) if types else ("", 0)
        self.target = C_TYPES[types[0]] if types else ""  # of a conversion, from self.kind
        try:
            make = getattr(self, f"do_{name}", None)
            code = make(*operands) if make else self.compute(name, *operands)
        except (TypeError, KeyError, StopIteration, AttributeError, ValueError):
            raise self.error(text) from None
        self.body.append(f"if ({negated}{identifier(guard)}) {{ {code} }}" if guard else f"{{ {code} }}")
        if name in ("bra", "brx", "ret", "exit"):
            self.block("")

    def one_of(self, table: dict[str, str], default: str | None = None) -> str:
        found = next((table[m] for m in self.mods if m in table), default)
        if found is None:
            raise KeyError
        return found

    def compute(self, name: str, d: str, *operands: str) -> str:
        """What gives a value: a function of ptx.h, or what FORMS has."""
        mods, kind = set(self.mods), self.kind
        if "cc" in mods or name in ("addc", "subc", "madc"):
            return self.with_carry(name, d, *operands)
        name += "".join(f"_{m}" for m in ("lo", "hi", "wide", "l", "r", "red", "shiftamt") if m in mods)
        is_plain = name in PLAIN and not {"ftz", "sat", "rz", "rm", "rp"} & mods
        name = name if name in KNOWN or name in FORMS or is_plain else f"{name}_"
        kind = f"u{kind}" if kind.startswith("int") and name in WRAPPING else kind
        kinds, form = FORMS.get(name, ("T" * len(operands), ""))
        types = {"T": kind, "u": "uint32_t", "p": "bool", "a": "uint64_t"}
        types["W"] = f"{kind.partition('int')[0]}int{16 * self.size}_t"
        values = [
            self.place(o, self.size) if k == "m" else self.value(o, types[k]) for o, k in zip(operands, kinds, strict=False)
        ]
        if is_plain:
            return self.to(d, PLAIN[name].format(*values, W=types["W"], f="f" * (kind == "float")))
        if form:
            tables = {key: self.one_of(table, "") for key, table in TABLES.items() if f"{{{key}}}" in form}
            what = next((m for m in ("popc", "and", "or", "clamp", "wrap") if m in mods), "")
            shared, adds = (str(m in mods).lower() for m in ("shared", "add"))
            values += ["0"] * (len(kinds) - len(values))
            here = f'"PTX", {self.line}'
            call = form.format(*values, T=kind, here=here, what=what, shared=shared, adds=adds, **tables)
        elif name not in KNOWN:
            raise KeyError
        else:
            flush, saturate = "ftz" in mods and kind == "float", "sat" in mods
            if saturate and kind not in FLOATS:
                raise KeyError
            values = [f"ptx::ftz({v})" for v in values] if flush else values
            mode = self.one_of(ROUND, "FE_TONEAREST")
            call = f"ptx::{name}<{kind}>({', '.join(values)})"
            if kind in FLOATS and mode != "FE_TONEAREST":
                call = f"ptx::rounding<{mode}>([](auto... v) {{ return ptx::{name}<{kind}>(v...); }}, {', '.join(values)})"
            call = f"ptx::ftz({call})" if flush else call
            call = f"ptx::saturated({call})" if saturate else call
            call = f"ptx::upper({call})" if {"approx", "ftz", "f64"} <= mods else call
        first, _, second = d.partition("|")
        before = "bool second = false; " * ("second" in call)
        return before + self.to(first, call) + (self.to(second, "second", "bool") if second else "")

    def with_carry(self, name: str, d: str, *operands: str) -> str:
        kind = f"u{self.kind}".replace("uu", "u")
        wide = "unsigned __int128" if self.size == 8 else "uint64_t"
        values = [f"({wide})({self.value(o, kind)})" for o in operands]
        if name.startswith("mad"):
            values[:2] = [f"({wide})T({values[0]} * {values[1]}{' >> 8 * sizeof(T)' if 'hi' in self.mods else ''})"]
        sign = "-" if name.startswith("sub") else "+"
        carried = f" {sign} carry" if name.endswith("c") else ""
        keep = " carry = t >> 8 * sizeof(T) & 1;" if "cc" in self.mods else ""
        return f"using T = {kind}; const {wide} t = {f' {sign} '.join(values)}{carried}; {self.to(d, 'T(t)', kind)}{keep}"

    def do_mov(self, d: str, a: str) -> str:
        parts = split((d if d.startswith("{") else a).strip("{}"))
        bits = 8 * self.size // len(parts)
        if d.startswith("{"):
            cut = [self.to(p, f"uint{bits}_t(x >> {bits * i})", f"uint{bits}_t") for i, p in enumerate(parts)]
            return f"const auto x = {self.value(a, self.kind)}; {' '.join(cut)}"
        if a.startswith("{"):
            whole = (f"{self.kind}({self.value(p, f'uint{bits}_t')}) << {bits * i}" for i, p in enumerate(parts))
            return self.to(d, f"{self.kind}({' | '.join(whole)})")
        return self.to(d, self.value(a, self.kind))

    def do_ld(self, d: str, a: str) -> str:
        parts = split(d.strip("{}"))
        loads = [self.to(p, f"*(ptx::{self.kind}_*)(at + {self.size * i})") for i, p in enumerate(parts)]
        return f"const unsigned char* at = {self.place(a, self.size * len(parts))}; {' '.join(loads)}"

    do_ldu = do_ld

    def do_st(self, a: str, v: str) -> str:
        parts = split(v.strip("{}"))
        stores = [f"*(ptx::{self.kind}_*)(at + {self.size * i}) = {self.value(p, self.kind)};" for i, p in enumerate(parts)]
        return f"unsigned char* at = {self.place(a, self.size * len(parts))}; {' '.join(stores)}"

    def do_setp(self, d: str, x: str, y: str, c: str = "") -> str:
        first, _, second = d.partition("|")
        if "ftz" in self.mods:
            raise KeyError
        compared = self.one_of(COMPARE).format(self.value(x, self.kind), self.value(y, self.kind))
        if not c and not second:
            return self.to(first, compared, "bool")
        combined = PLAIN[next(m for m in self.mods if m in COMBINE)].format("{}is", self.value(c, "bool")) if c else "{}is"
        code = f"const bool is = {compared}; {self.to(first, combined.format(''), 'bool')}"
        return code + (self.to(second, combined.format("!"), "bool") if second else "")

    def do_cvt(self, d: str, a: str) -> str:
        to, source = self.target, self.kind
        value = self.value(a, source)
        value = f"ptx::ftz({value})" if "ftz" in self.mods and source == "float" else value
        value = f"{self.one_of(WHOLE, '')}({value})"
        if to not in FLOATS and source in FLOATS:
            value = f"ptx::whole<{to}>({value})"
        elif to not in FLOATS:
            value = f"ptx::clamped<{to}>({value})" if "sat" in self.mods else f"{to}({value})"
        elif to != source:
            mode = self.one_of(ROUND, "FE_TONEAREST")
            value = f"ptx::rounding<{mode}>([](auto v) {{ return {to}(v); }}, {value})"
        for mod, function in (("ftz", "ftz"), ("sat", "saturated")):
            value = f"ptx::{function}({value})" if mod in self.mods and to in FLOATS else value
        return self.to(d, value, to)

    def do_cvta(self, d: str, a: str) -> str:
        function = "" if "shared" not in self.mods else "ptx::to_shared" if "to" in self.mods else "ptx::to_generic"
        return self.to(d, f"{function}({self.value(a, 'uint64_t')})")

    def do_bra(self, label: str) -> str:
        return f"goto {identifier(label)};"

    def do_brx(self, index: str, table: str) -> str:
        cases = "".join(f"case {i}: goto {identifier(label)};" for i, label in enumerate(self.labels[table]))
        return f"switch ({self.value(index, 'uint32_t')}) {{ {cases} }}"

    def do_ret(self) -> str:
        return "return;"

    do_exit = do_ret

    def do_trap(self) -> str:
        return f'minires::stop("PTX", {self.line}, "__trap() was called");'

    def do_call(self, *operands: str) -> str:
        name = next(o for o in operands if o[0] != "(")
        given = [f"(unsigned char*){identifier(p)}" for o in operands if o[0] == "(" for p in split(o.strip("()"))]
        if name in self.registers:  # a virtual function; what follows names its prototype, which the parameters show
            return f"(*(void (*)({', '.join(['unsigned char*'] * len(given))})){identifier(name)})({', '.join(given)});"
        return f"{f'ptx::{HOST[name]}' if name in HOST else identifier(name)}({', '.join(given)});"

    def do_bar(self, *operands: str) -> str:
        if "red" in self.mods:
            return self.compute("bar", *operands)
        if "warp" in self.mods:
            return f'minires::exchange({self.value(operands[0], "uint32_t")}, 0, "PTX", {self.line});'
        (_,) = operands  # a second one, a number of threads, is not known
        return f'minires_barrier(&minires_now, {self.line}, "PTX", {self.line});'

    do_barrier = do_bar

    def do_red(self, address: str, b: str) -> str:
        return self.compute("atom", "_", address, b)


def translate(ptx: str, counted: bool = False) -> Program:
    """The entries of a module. Raises PtxError where something in it is not understood."""
    return Translator(ptx, counted).program

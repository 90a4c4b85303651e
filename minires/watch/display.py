"""HTML of what the instruments say, for notebooks and for the page of examples/inspect_kernel.py: no script, no network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

import numpy as np

from ..device import KERNELS_DIR
from ..device.source import base_name, blank, named
from .accesses import Access, Launch
from .requests import words_of_banks

STYLE = """<style>
.mr-code { display: grid; grid-template-columns: max-content max-content minmax(max-content, 1fr); overflow-x: auto;
  font: 12.5px/1.5 ui-monospace, monospace; border: 1px solid #8886; margin: .6em 0 }
.mr-code > div { grid-column: 1 / -1; display: grid; grid-template-columns: subgrid }
.mr-code a { grid-row: 1; color: inherit; opacity: .65; text-align: right; text-decoration: none; padding: 0 .8em }
.mr-code pre { grid-area: 1 / 3; margin: 0 0 0 .8em; padding: 0; font: inherit; background: none; color: inherit }
.mr-code details { grid-column: 2; padding: 0 .8em }
.mr-code details[open] { grid-column: 1 / -1; border-block: 1px solid #8886 }
.mr-code > b { grid-column: 1 / -1; padding: .3em .8em }
.mr-code summary { cursor: pointer; list-style: none }
.mr-code .least { background: #4a43 } .mr-code .some { background: #ea05 } .mr-code .much { background: #e436 }
.mr-lanes { display: grid; grid-template-columns: repeat(32, minmax(2.2em, 1fr)); gap: 2px; font-size: 11px; margin: 2px 0 }
.mr-lanes > * { border: 1px solid #8886; text-align: center; font-style: normal; font-weight: 400; min-height: 1.5em }
.mr-lanes i { border-style: dashed; opacity: .5 } .mr-lanes .conflict { border: 2px solid #d43; font-weight: 700 }
</style>"""


def shown_lines(launch: Launch) -> Iterator[tuple[str, int, str, list[Access]]]:
    """File, number, text and accesses of the lines of each function in which the launch touched memory."""
    texts = {a.file: lines_of(a.file, launch.code) for a in launch.accesses}
    for file in sorted(texts, key=lambda file: not any(f"{base_name(launch.kernel)}(" in line for line in texts[file])):
        lines, here = texts[file], [a for a in launch.accesses if a.file == file]
        for first, last in functions(lines):
            if any(first <= a.line <= last for a in here):
                for number in range(first, last + 1):
                    yield file, number, lines[number - 1], [a for a in here if a.line == number]


def lines_of(file: str, code: str) -> list[str]:
    """Of a file of kernels/, or of what a kernel of one's own was made from."""
    path = KERNELS_DIR / Path(file).name
    return (path.read_text() if path.exists() else re.sub(r"\A(?:#line .*\n)+", "", code)).splitlines()


def functions(lines: list[str]) -> Iterator[tuple[int, int]]:
    """The first and the last line of each function, or whatever else stands in braces, with the comment above it."""
    depth = first = 0
    for number, (line, code) in enumerate(
        zip(lines, map(str.strip, blank("\n".join(lines)).split("\n")), strict=True), start=1
    ):
        first = first or (number if line.strip() else 0)
        depth += code.count("{") - code.count("}")
        if depth == 0 and code.endswith(("}", "};")):
            yield first, number
        if depth == 0 and (not line.strip() or code.endswith(("}", ";"))):
            first = 0


def words(access: Access) -> str:
    """An access in a margin's width: its cost against the least, and its lanes."""
    much, lanes = access.cost / max(access.cost_least, 1), access.lanes / access.requests
    return f"{access.kind} {access.bytes} B {lanes:.0f} lanes, {much:.2f} x {access.unit}"


def launch_html(launch: Launch, requests: int) -> str:
    """Its sums, the lines that cost most above the least, and the code with the lanes of the first requests of each line."""
    at = base_name(launch.kernel)
    worst = sorted((a for a in launch.accesses if a.cost > a.cost_least), key=lambda a: a.cost_least - a.cost)[:5]
    links = [f'<a href="#{at}-{a.line}">line {a.line}</a>: {words(a)}' for a in worst]
    above = f"Most above the least: {'; '.join(links)}." if links else "Each line costs the least."
    code, shown = [], None
    for file, number, text, accesses in shown_lines(launch):
        code += [f"<b>{file}</b>"] * (file != shown)
        code.append(f'<div id="{at}-{number}"><a href="#{at}-{number}">{number}</a><pre>{escape(text) or " "}</pre>')
        for access in accesses:
            drawn = "".join(_request(access, i) for i in range(min(requests, len(access.samples))))
            code.append(f'<details class="{_waste(access)}"><summary>{words(access)}</summary>{drawn}</details>')
        code.append("</div>")
        shown = file
    return (
        f"<p>Grid {launch.grid}, block {launch.block}; {launch.blocks_counted} of {launch.blocks} blocks counted. {above}</p>"
        f'<div class="mr-code">{"".join(code)}</div>'
    )


def heading(launch: Launch) -> str:
    """The kernel, its template's parameters by name."""
    return escape(named(launch.kernel, launch.code))


def _waste(access: Access) -> str:
    much = max(access.cost / max(access.cost_least, 1), 32 * access.requests / access.lanes)
    return "least" if much <= 1.25 else "some" if much <= 2 else "much"


def _request(access: Access, number: int) -> str:
    """The sector or word of each lane, and below how full each sector is, or how many words each bank must give."""
    sample, size = access.samples[number], 32 if access.space == "global" else 4
    lanes = [
        "<i>&ndash;</i>" if at is None else f'<b style="background:hsl({at // size * 67 % 360} 70% 50%/.25)">{at // size}</b>'
        for at in sample
    ]
    unit, below = ("sector", _sectors) if access.space == "global" else ("word", _banks)
    head = f"request {number + 1}: the {unit} of each of 32 lanes"
    return f'{head}<div class="mr-lanes">{"".join(lanes)}</div>{below(sample, access.bytes)}'


def _sectors(sample: list[int | None], size: int) -> str:
    used: dict[int, set[int]] = {}
    for at in sample:
        for byte in range(at, at + size) if at is not None else ():
            used.setdefault(byte // 32, set()).add(byte)
    cells = [
        f'<b style="background:linear-gradient(to right,#48d6 {len(b) / 0.32:g}%,#0000 0)">{len(b)}</b>'
        for _, b in sorted(used.items())
    ]
    sums = f"{len(used)} sectors, {32 * len(used)} bytes fetched, {sum(map(len, used.values()))} used; of each sector:"
    return f'{sums}<div class="mr-lanes">{"".join(cells)}</div>'


def _banks(sample: list[int | None], size: int) -> str:
    (turns,) = words_of_banks(np.array([[-1 if at is None else at for at in sample]]), size)
    rows = []
    for words in turns[turns.any(1)].tolist():
        cells = [f'<b class="conflict">{n}!</b>' if n > 1 else f"<b>{n or ''}</b>" for n in words]
        rows.append(f'<div class="mr-lanes">{"".join(cells)}</div>')
    return f"{turns.max(1).sum()} wavefronts; of each of 32 banks the words (!: they wait for one another):{''.join(rows)}"

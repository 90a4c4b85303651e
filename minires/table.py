"""A table of texts: aligned where there is text alone, HTML in a notebook."""

from __future__ import annotations

from html import escape


class Table:
    """Rows of texts below a head. The last column is a name, on the left; the others are numbers, on the right."""

    def __init__(self, head: list[str], rows: list[list[str]]) -> None:
        self.lines = [head, *rows]

    def __str__(self) -> str:
        widths = [max(map(len, column)) + 2 for column in zip(*self.lines, strict=True)]
        padded = ([f"{text:>{width}}" for text, width in zip(line[:-1], widths, strict=False)] for line in self.lines)
        return "\n".join("".join(p) + f"  {line[-1]}" for p, line in zip(padded, self.lines, strict=True))

    def _repr_html_(self) -> str:
        cells = ["".join(f"<td>{escape(text)}" for text in line) for line in self.lines]
        return f"<table><tr>{'<tr>'.join(cells).replace('<td>', '<th>', len(self.lines[0]))}</table>"

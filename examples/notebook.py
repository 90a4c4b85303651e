"""Make the notebook tour.ipynb of the lessons and of the exercises, and run it. Needs pip install -e '.[notebook]'

python examples/notebook.py
"""

from __future__ import annotations

import re
from pathlib import Path

import jupytext
import nbclient
import nbformat

HERE = Path(__file__).resolve().parent
EXERCISES = """
# Exercises

Write the bodies; the cell below each kernel checks it as `examples/exercises.py` does: what it computes, what the sanitizer
says, and for some whether a GPU would have to fetch more than it needs.
"""


def exercise_cells() -> list[nbformat.NotebookNode]:
    """For each kernel of exercises.cu a cell that holds it, and one that checks it."""
    cells = [nbformat.v4.new_markdown_cell(EXERCISES.strip())]
    cells.append(nbformat.v4.new_code_cell("from exercises import verdict"))
    for text in re.split(r"^(?=// \d+\. )", (HERE / "exercises.cu").read_text(), flags=re.MULTILINE)[1:]:
        name = re.search(r"__global__ void (\w+)\(", text)[1]
        cells.append(nbformat.v4.new_code_cell(f'{name} = r"""\n{text.strip()}\n"""'))
        cells.append(nbformat.v4.new_code_cell(f'verdict({name}, "{name}")'))
    return cells


def make() -> nbformat.NotebookNode:
    """The notebook, which has not been run."""
    lessons = [jupytext.read(path) for path in sorted(HERE.glob("lesson*.py"))]
    cells = [cell for lesson in lessons for cell in lesson.cells] + exercise_cells()
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    for number, cell in enumerate(cells):
        cell.id, cell.metadata = f"cell-{number}", {}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def run(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with its outputs. Raises nbclient.exceptions.CellExecutionError where a cell fails."""
    resources = {"metadata": {"path": str(HERE)}}
    options = {"timeout": 600, "record_timing": False, "coalesce_streams": True, "resources": resources}
    nbclient.NotebookClient(notebook, **options).execute()
    notebook.metadata.pop("language_info", None)
    return notebook


if __name__ == "__main__":
    nbformat.write(run(make()), HERE / "tour.ipynb")

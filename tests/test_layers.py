"""The engine and the instruments stand on the devices; neither knows of the other, and nothing imports in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "minires"
FILES = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}


def imports(name: str) -> set[str]:
    """The modules of minires that a module imports, inside of functions too; a package is its `__init__`."""
    here, found = name.split("."), set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        base = [*here[: len(here) - node.level], *(node.module.split(".") if node.module else [])]
        for path in ([*base, alias.name] for alias in node.names):
            wanted = [".".join(p) for p in (path, [*path, "__init__"], base, [*base, "__init__"])]
            found |= set([w for w in wanted if w in FILES][:1])
    return found


def layer(name: str) -> str:
    return name.split(".")[0] if "." in name else {"__init__": "the whole", "table": "table"}.get(name, "engine")


@pytest.fixture(autouse=True)
def only_once(current_device):
    if current_device != "cpu":
        pytest.skip("the same on every device")


def test_no_layer_knows_of_one_that_it_does_not_stand_on():
    stands_on = {
        "device": {"device"},
        "watch": {"device", "watch", "table"},
        "engine": {"device", "engine", "table"},
        "table": set(),
    }
    seen = {(layer(name), layer(other)) for name in FILES for other in imports(name)}
    assert {("engine", "device"), ("watch", "device"), ("the whole", "watch")} <= seen
    assert not {(a, b) for a, b in seen if a in stands_on and b not in stands_on[a]}


def test_there_is_no_circle():
    order = list(TopologicalSorter({name: imports(name) for name in FILES}).static_order())  # raises CycleError
    assert order.index("tensor") < order.index("functional") < order.index("nn") < order.index("resnet")

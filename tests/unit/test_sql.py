"""Named statements and the code that names them: a type checker sees neither."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

from app.sql import Statements, load
from tests.logs import FIRST_LOG

APP = Path(__file__).parents[2] / "app"
STATEMENTS = {path.stem: load(path.stem) for path in (APP / "sql").glob("*.sql") if path.stem != "fragments"}
KNOWN = [*STATEMENTS.values(), *(one.of(FIRST_LOG) for one in STATEMENTS.values())]
MODULES = {path: ast.parse(path.read_text("utf-8")) for path in APP.rglob("*.py") if path.name != "__main__.py"}


def subscripts() -> Iterator[tuple[Path, dict[str, str], str]]:
    """Each `SQL["name"]` of app/: the module, the statements that SQL is there, and the name."""
    for path, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                statements = value_of(path, node.value)
                if isinstance(statements, dict) and statements in KNOWN:
                    yield path, statements, str(node.slice.value)


def value_of(path: Path, node: ast.expr) -> object:
    match node:
        case ast.Name(id=name):
            module = ".".join(["app", *path.relative_to(APP).with_suffix("").parts]).removesuffix(".__init__")
            return getattr(importlib.import_module(module), name, None)
        case ast.Call(func=ast.Name(id="load"), args=[ast.Constant(value=station)]):
            return STATEMENTS.get(str(station))
        case ast.Call(func=ast.Attribute(value=of_file, attr="of")):
            statements = value_of(path, of_file)
            return statements.of(FIRST_LOG) if isinstance(statements, Statements) else None
    return None


def test_statements_that_are_named_exist() -> None:
    """A statement was renamed in its file and not where it is used: KeyError, once somebody asks."""
    found = list(subscripts())
    assert len(found) > 100  # they were seen
    assert [(path.name, name) for path, statements, name in found if name not in statements] == []


def test_statements_that_exist_are_named() -> None:
    """A statement stands in a file and nobody runs it."""
    texts = {n.value for tree in MODULES.values() for n in ast.walk(tree) if isinstance(n, ast.Constant)}
    assert {name for one in STATEMENTS.values() for name in one.of(FIRST_LOG)} - texts == set()

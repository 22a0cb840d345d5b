"""docs/glossary.md is held to: no public name of app/ has a word that the glossary bans."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def table(heading: str) -> list[list[str]]:
    """The rows of the table below a heading of the glossary, without its head."""
    section = (ROOT / "docs" / "glossary.md").read_text("utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def banned_words() -> set[str]:
    return {word for row in table("Words that are not used") for word in re.findall(r"\w+", row[0])}


def words(name: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(name)} | {name.lower()}


def public_names(tree: ast.AST) -> Iterator[str]:
    """Functions, classes, their methods, parameters and fields, and the names that a module binds."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
            if not node.name.startswith("_") or node.name == "__init__":
                arguments = node.args
                yield from (a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs))
        elif isinstance(node, ast.ClassDef):
            yield node.name
            if not node.name.startswith("_"):
                yield from public_names(node)
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def names_of(path: Path) -> Iterator[str]:
    yield path.stem
    yield from (name for name in public_names(ast.parse(path.read_text("utf-8"))) if not name.startswith("_"))


def members(node: Any) -> Iterator[str]:
    """Names of the members in a JSON Schema, or in a document of such: clients know them."""
    if isinstance(node, dict):
        yield from node.get("properties", {})
        node = [*node.values()]
    for one in node if isinstance(node, list) else []:
        yield from members(one)


def test_no_public_name_has_a_banned_word() -> None:
    """A name says something else than the glossary, or nothing to an engineer of the field."""
    banned = banned_words()
    assert len(banned) > 20  # the table was found
    stays = {name for row in table("Names that differ and stay") for name in re.findall(r"`(\w+)", row[0])}
    stays |= set(members(json.loads((ROOT / "openapi" / "datastorage.json").read_text("utf-8"))))
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / "app").rglob("*.py")
        for name in names_of(path)
        if words(name) & banned and name not in stays
    }
    assert found == set()


def test_a_banned_word_is_seen() -> None:
    """The test above would pass whatever names there are."""
    source = "class KeptRow:\n    told: int\n    def look(self, moment: str) -> None: ...\n\nasync def _tell() -> None: ...\n"
    seen = {name for name in public_names(ast.parse(source)) if words(name) & banned_words()}
    assert seen == {"KeptRow", "told", "moment", "_tell"}


def test_every_term_is_said_once() -> None:
    """A word has two meanings."""
    headings = ("What is recorded", "How it is proved", "How it is written", "How long it is stored", "How it leaves")
    terms = [row[0] for heading in headings for row in table(heading)]
    assert len(terms) == len(set(terms)) > 30

"""Only `decode` (and `diffusion`) import the C++ extension, which import-linter cannot see."""

from __future__ import annotations

import ast
from pathlib import Path

import vlrt

ROOMS = {"decode", "diffusion"}


def imports_extension(source: str) -> bool:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and any(alias.name == "vlrt._C" for alias in node.names):
            return True
        if isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            if node.module == "vlrt._C" or ("_C" in names and node.module in ("vlrt", None)):
                return True
    return False


def test_the_extension_is_imported_by_its_rooms_only() -> None:
    package = Path(vlrt.__file__).parent
    importing = {p.relative_to(package) for p in package.rglob("*.py") if imports_extension(p.read_text("utf-8"))}
    assert importing, "the loop imports it, or this test looks for the wrong thing"
    assert {path.parts[0] for path in importing} <= ROOMS

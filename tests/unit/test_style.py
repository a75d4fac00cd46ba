"""The house's own rules: lint, format, types, import layers. Run here so that one command tests everything."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MACHINE = re.compile(r"(?<![\w.])/(?:home|Users|root)/\w")
"""A path below somebody's own folder."""

SOURCES = ("runtime", "export", "tests", "benchmarks")


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"


def tool(name: str) -> str:
    """The script of that name in this environment, also where its folder is not on PATH."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    assert found, f"`{name}` is not installed; pip install '.[test]'"
    return found


def test_ruff_finds_nothing() -> None:
    run(tool("ruff"), "check", *SOURCES)


def test_python_is_formatted() -> None:
    run(tool("ruff"), "format", "--check", *SOURCES)


def test_types_are_strict() -> None:
    run(sys.executable, "-m", "mypy")


def test_rooms_import_downward_only() -> None:
    run(tool("lint-imports"))


def test_cpp_is_formatted() -> None:
    files = [str(path) for ending in ("h", "cc") for path in sorted((ROOT / "cpp_ext").rglob(f"*.{ending}"))]
    assert files
    run(tool("clang-format"), "--dry-run", "--Werror", *files)


def test_headers_name_each_thing_once() -> None:
    """Two of one name in one namespace would be merged by the linker without a word."""
    kinds = r"(?:class|struct|enum class) (\w+)(?: : [\w:]+)? \{"
    functions_and_constants = r"(?:inline |constexpr |VLRT_VECTOR )+[\w:<>*& ]+?[ *&](\w+)(?: =|\(|\{)"
    defined = re.compile(rf"^(?:{kinds}|{functions_and_constants})", re.MULTILINE)
    seen: dict[str, Path] = {}
    for path in sorted((ROOT / "cpp_ext").rglob("*.h")):
        text = path.read_text("utf-8")
        namespace = "".join(re.findall(r"^namespace ([\w:]+) \{", text, re.MULTILINE)[:1])
        for name in {f"{namespace}::{''.join(match)}" for match in defined.findall(text)}:
            assert name not in seen, f"{path.name} and {seen[name].name} both define {name}"
            seen[name] = path
    assert "vlrt::kernels::tile_panels" in seen


def test_sources_name_no_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        files = [p for folder in (*SOURCES, "cpp_ext") for p in (ROOT / folder).rglob("*") if p.is_file()]
    else:
        files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    endings = {".py", ".md", ".toml", ".yaml", ".h", ".cc", ".txt", ".json", ".pyi"}
    texts = {path: path.read_text("utf-8") for path in files if path.suffix in endings and path.is_file()}
    here = str(ROOT) + os.sep  # the checkout's own place is the likeliest to slip in
    assert not [path for path, text in texts.items() if MACHINE.search(text) or here in text]


@pytest.mark.parametrize("path", ["home/ann/model", "Users/ann/model", "root/model"])
def test_a_machine_is_recognised(path: str) -> None:
    assert MACHINE.search(f"see /{path} for more")
    assert not MACHINE.search(f"see example.org/{path}")

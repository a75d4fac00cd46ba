"""The C++ core compiles without a warning and its tests run clean under address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_native(tmp_path: Path) -> None:
    cmake = shutil.which("cmake")
    if cmake is None or not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.fail("the native tests need `cmake` and a C++ compiler: pip install cmake ninja")
    options = ("VLRT_BUILD_PYTHON=OFF", "VLRT_BUILD_TESTS=ON", "VLRT_SANITIZE=ON", "CMAKE_BUILD_TYPE=None")
    generator = ("-G", "Ninja") if shutil.which("ninja") else ()
    run(cmake, "-S", str(ROOT / "cpp_ext"), "-B", str(tmp_path), *generator, *(f"-D{option}" for option in options))
    run(cmake, "--build", str(tmp_path), "--parallel", "2")
    output = run(str(tmp_path / "vlrt_native_tests"), UBSAN_OPTIONS="print_stacktrace=1")
    assert " 0 failed" in output

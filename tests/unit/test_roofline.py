"""Operations counted from a profile against the formulas, the roofs, and sizes of installations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vlrt.benchmark import synthetic_jpeg
from vlrt.bundle import Bundle
from vlrt.engines import EngineOptions
from vlrt.install_size import folder_size, install_size
from vlrt.roofline import Place, Roofs, measure_roofs, operations, roofline


def kernel(name: str, inputs: list[list[int]], output: list[int]) -> dict[str, Any]:
    typed = [{"float": shape} for shape in inputs]
    return {"op_name": name, "input_type_shape": typed, "output_type_shape": [{"float": output}]}


@pytest.mark.parametrize(
    ("name", "inputs", "output", "expected"),
    [
        ("MatMul", [[2, 5, 8]], [2, 5, 16], 2 * 2 * 5 * 16 * 8),  # packed weights have no shape in the profile
        ("MatMul", [[2, 5, 8], [8, 16]], [2, 5, 16], 2 * 2 * 5 * 16 * 8),
        ("FusedMatMul", [[3, 4, 7, 6], [3, 4, 9, 6]], [3, 4, 7, 9], 2 * 3 * 4 * 7 * 9 * 6),
        ("FusedMatMul", [[3, 4, 6, 7], [3, 4, 6, 9]], [3, 4, 7, 9], 2 * 3 * 4 * 7 * 9 * 6),
        ("Gemm", [[4, 8], [8, 2], [2]], [4, 2], 2 * 4 * 2 * 8),
        ("Conv", [[1, 8, 16, 16], [12, 8, 3, 3], [12]], [1, 12, 16, 16], 2 * 12 * 16 * 16 * 8 * 9),
        ("Conv", [[1, 8, 16, 16], [8, 1, 3, 3]], [1, 8, 16, 16], 2 * 8 * 16 * 16 * 9),  # depthwise
        ("Linear", [[2, 5, 8], [1, 8, 16]], [2, 5, 16], 2 * 2 * 5 * 16 * 8),
        ("LinearInt8", [[2, 5, 8], [1, 2, 16, 4], [16], [16]], [2, 5, 16], 2 * 2 * 5 * 16 * 8),
        ("Attention", [[1, 3, 40, 8], [1, 3, 50, 8], [1, 3, 50, 6]], [1, 3, 40, 6], 4 * 3 * 40 * 50 * 6),
        ("Conv3x3", [[1, 8, 16, 16], [1, 8, 9, 16]], [1, 12, 16, 16], 2 * 12 * 16 * 16 * 8 * 9),
        ("Conv1x1", [[1, 8, 16, 16], [1, 8, 16]], [1, 12, 16, 16], 2 * 12 * 16 * 16 * 8),
        ("Softmax", [[4, 8]], [4, 8], 0),
        ("MatMul", [], [4, 8], 0),
    ],
)
def test_operations(name: str, inputs: list[list[int]], output: list[int], expected: int) -> None:
    assert operations(kernel(name, inputs, output)) == expected


def test_a_graph_is_measured_against_what_is_possible_at_its_intensity() -> None:
    roofs = Roofs(gflops=100.0, gbytes=10.0)
    assert Place("memory-bound", 1.0, 2.0, 10.0).share(roofs) == pytest.approx(0.5)
    assert Place("compute-bound", 1.0, 50.0, 80.0).share(roofs) == pytest.approx(0.8)


def test_every_graph_that_ran_has_a_place(tiny_bundle_folder: Path) -> None:
    found = roofline("caption", Bundle.open(tiny_bundle_folder), EngineOptions(threads=1), synthetic_jpeg())
    assert {place.role for place in found.places} <= set(Bundle.open(tiny_bundle_folder).manifest.graphs)
    assert found.places
    assert all(place.milliseconds > 0 and place.intensity > 0 and place.gflops > 0 for place in found.places)
    assert min(measure_roofs(1).values()) > 0


def test_what_a_library_takes_is_more_with_what_it_requires() -> None:
    size, packages = install_size(["click"])
    assert size > 0
    both, more = install_size(["click", "numpy", "NumPy"])
    assert (both > size, more) == (True, packages + 1)
    assert install_size(["no-such-library-at-all"]) == (0.0, 0)


def test_a_folder_is_as_large_as_its_files(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a").write_bytes(bytes(300_000))
    (tmp_path / "b").write_bytes(bytes(200_000))
    assert folder_size(tmp_path) == 0.5

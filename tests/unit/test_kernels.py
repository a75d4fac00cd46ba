"""Kernels of our own as onnxruntime runs them, beside NumPy."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from vlrt.engines import custom_kernels
from vlrt.engines.graph_cache import processor
from vlrt.errors import EngineError, VlrtWarning

needs_fp32 = pytest.mark.skipif(custom_kernels.level() < 1, reason="the processor has no AVX-512")
needs_int8 = pytest.mark.skipif(custom_kernels.level() < 2, reason="the processor has no AVX-512 VNNI")

ROWS = (*range(1, 10), 27)
SIZES = ((7, 19), (33, 16), (64, 50))
"""Of the weights: inner, columns."""

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "quick_gelu", "silu")
LAYOUTS = ("bhtd", "bhdt", "bthd", "bt(hd)")


@pytest.fixture
def twins(kernel_twins: ModuleType) -> ModuleType:
    return kernel_twins


def draw(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_the_level_is_what_the_processor_says() -> None:
    flags = set(processor().replace("\t", " ").split())
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"} <= flags:
        assert custom_kernels.level() == (2 if "avx512_vnni" in flags else 1)
    else:
        assert custom_kernels.level() == 0


def test_the_kernels_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLRT_KERNELS", "0")
    assert (custom_kernels.level(), custom_kernels.level_name()) == (0, "none")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for a library, looked at in place of ours."""
    path = tmp_path / "_kernels.so"
    monkeypatch.setattr(custom_kernels, "_path", lambda: path)
    monkeypatch.setattr(custom_kernels, "_level", custom_kernels._level.__wrapped__)
    return path


def test_where_it_is_missing_the_engine_goes_on_without(elsewhere: Path) -> None:
    assert custom_kernels.level() == 0


def test_a_damaged_library_is_told(twins: ModuleType, elsewhere: Path) -> None:
    elsewhere.write_bytes(b"\x7fELF")
    with pytest.warns(VlrtWarning, match="onnxruntime's own kernels run instead"):
        assert custom_kernels.level() == 0
    with pytest.raises(EngineError, match="cannot be loaded by onnxruntime"):
        twins.open_model(onnx.ModelProto())


@needs_fp32
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", SIZES)
def test_products_in_fp32(twins: ModuleType, sizes: tuple[int, int], activation: str) -> None:
    weights, bias = draw(*sizes), draw(sizes[1], seed=1)
    session = twins.open_linear(weights, activation, bias, residual=True)
    for rows in ROWS:
        x, residual = draw(rows, sizes[0], seed=rows), draw(rows, sizes[1], seed=2)
        (y,) = session.run(None, {"x": x, "r": residual})
        np.testing.assert_allclose(y, twins.linear(x, weights, activation, bias, residual), rtol=0, atol=2e-5)


@needs_int8
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", SIZES)
def test_products_of_bytes(twins: ModuleType, sizes: tuple[int, int], activation: str) -> None:
    weights = np.random.default_rng(3).integers(-127, 128, sizes, np.int8)
    bias = draw(sizes[1], seed=1)
    session = twins.open_linear(weights, activation, bias, residual=True)
    for rows in ROWS:
        x, residual = draw(rows, sizes[0], seed=rows), draw(rows, sizes[1], seed=2)
        x[0] = 0  # a row without a range
        bytes_, scale, zero = twins.quantised(x)
        exact = twins.linear((bytes_ - zero) * scale, weights / 64, activation, bias, residual)
        (y,) = session.run(None, {"x": x, "r": residual})
        np.testing.assert_allclose(y, exact, rtol=0, atol=5e-5)


@pytest.mark.parametrize("kind", [pytest.param("f4", marks=needs_fp32), pytest.param("i1", marks=needs_int8)])
def test_products_without_bias_and_residual_row_by_row(twins: ModuleType, kind: str) -> None:
    weights = np.random.default_rng(3).integers(-9, 9, (20, 40)).astype(kind)
    session = twins.open_linear(weights, "none", None, residual=False)
    x = draw(31, 20)
    (y,) = session.run(None, {"x": x})
    alone = [session.run(None, {"x": x[row : row + 1]})[0] for row in range(31)]
    assert np.array_equal(y, np.concatenate(alone)), "a row depends on nothing but itself"
    assert session.run(None, {"x": x[:0]})[0].shape == (0, 40)


@needs_fp32
@pytest.mark.parametrize("queries", [1, 5, 29])
@pytest.mark.parametrize("layout", [*zip(*[LAYOUTS] * 4), ("bhdt", "bhtd", "bhdt", "bhdt")])
def test_attention_in_every_layout(twins: ModuleType, layout: tuple[str, ...], queries: int) -> None:
    query, key, value = draw(2, 3, queries, 24), draw(2, 3, 37, 24, seed=1), draw(2, 3, 37, 20, seed=2)
    mask = np.where(np.arange(37) < np.array([37, 30])[:, None], 0, -1e9).astype(np.float32)[:, None, None]
    sides = [twins.laid_out(side, kind) for side, kind in zip((query, key, value), layout)]
    session = twins.open_model(attention_model(twins, [side.ndim for side in sides], 4, layout))
    (y,) = session.run(None, dict(zip("qkvm", (*sides, mask))))
    exact = twins.laid_out(twins.attention(query, key, value, mask, 0.2), layout[3])
    np.testing.assert_allclose(y, exact, rtol=0, atol=3e-6)


@needs_fp32
@pytest.mark.parametrize("queries", [1, 29])
def test_attention_to_parts_of_one_tensor(twins: ModuleType, queries: int) -> None:
    sides = [draw(2, 3, queries, 24, seed=seed) for seed in range(3)]
    whole = np.concatenate([twins.laid_out(side, "bt(hd)") for side in sides], axis=2)
    layout = ("bt(hd) 1/3", "bt(hd) 2/3", "bt(hd) 3/3", "bt(hd)")
    (y,) = twins.open_model(attention_model(twins, [3] * 3, 0, layout)).run(None, dict.fromkeys("qkv", whole))
    np.testing.assert_allclose(y, twins.laid_out(twins.attention(*sides, 0.0, 0.2), "bt(hd)"), rtol=0, atol=3e-6)


@needs_fp32
@pytest.mark.parametrize("memories", [1, 2])
def test_rows_that_share_a_memory_ask_it_together(twins: ModuleType, memories: int) -> None:
    query, key, value = draw(6, 3, 2, 24), draw(memories, 3, 37, 24, seed=1), draw(memories, 3, 37, 20, seed=2)
    sides = [twins.laid_out(side, "bt(hd)") for side in (query, key, value)]
    (y,) = twins.open_model(attention_model(twins, [3] * 3, 0, ("bt(hd)",) * 4)).run(None, dict(zip("qkv", sides)))
    shared = [side.repeat(6 // memories, 0) for side in (key, value)]
    exact = twins.laid_out(twins.attention(query, *shared, 0.0, 0.2), "bt(hd)")
    np.testing.assert_allclose(y, exact, rtol=0, atol=3e-6)


def attention_model(
    twins: ModuleType, ranks: list[int], mask: int, layout: tuple[str, ...], **changes: Any
) -> onnx.ModelProto:
    names = ("query_layout", "key_layout", "value_layout", "output_layout")
    attributes = {"heads": 3, "scale": 0.2, **dict(zip(names, layout)), **changes}
    inputs = {**dict(zip("qkv", ranks)), **({"m": mask} if mask else {})}
    model: onnx.ModelProto = twins.operator_model("Attention", inputs, {}, "q k v m" if mask else "q k v", **attributes)
    return model


@needs_fp32
@pytest.mark.parametrize("memory", [*itertools.product((1, 2), (1, 3))], ids=str)
def test_queries_share_a_memory(twins: ModuleType, memory: tuple[int, int]) -> None:
    query, key, value = draw(2, 3, 4, 16), draw(*memory, 9, 16, seed=1), draw(*memory, 9, 16, seed=2)
    session = twins.open_model(attention_model(twins, [4, 4, 4], 0, ("bhtd",) * 4))
    (y,) = session.run(None, {"q": query, "k": key, "v": value})
    np.testing.assert_allclose(y, twins.attention(query, key, value, 0, 0.2), rtol=0, atol=3e-6)


@needs_fp32
@pytest.mark.parametrize("shape", [(9,), (4, 1), (3, 1, 9), (2, 3, 4, 9), (1, 1, 1, 1)], ids=str)
def test_masks_broadcast(twins: ModuleType, shape: tuple[int, ...]) -> None:
    query, key, value, mask = draw(2, 3, 4, 16), draw(2, 3, 9, 16, seed=1), draw(2, 3, 9, 16, seed=2), draw(*shape)
    session = twins.open_model(attention_model(twins, [4, 4, 4], len(shape), ("bhtd",) * 4))
    (y,) = session.run(None, {"q": query, "k": key, "v": value, "m": mask})
    np.testing.assert_allclose(y, twins.attention(query, key, value, mask, 0.2), rtol=0, atol=3e-6)


@needs_fp32
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inner": 8}, r"Linear: `W` is \[2, 7, 16\], expected 256 elements"),
        ({"columns": 33}, r"Linear: `bias` is \[19\], expected 33 elements"),
        ({"columns": 0}, "Linear: `columns` is 0, expected 1 to 16777216"),
        ({"inner": 1 << 40}, "Linear: `inner` is 1099511627776, expected 1 to 16777216"),
        ({"activation": "swish"}, "Linear: unknown activation `swish`"),
    ],
)
def test_a_product_that_fits_not_is_refused_when_it_is_loaded(
    twins: ModuleType, changes: dict[str, Any], message: str
) -> None:
    attributes = {"inner": 7, "columns": 19, "activation": "none", **changes}
    weights = {"w": twins.packed(draw(7, 19)), "b": draw(19)}
    with pytest.raises(Exception, match=message):
        twins.open_model(twins.operator_model("Linear", {"x": 2}, weights, "x w b", **attributes))


@needs_fp32
@pytest.mark.parametrize(
    ("x", "residual", "message"),
    [
        ((2, 6), (2, 19), r"X is \[2, 6\], expected \[..., 7\]"),
        ((2, 7), (1, 19), r"the residual is \[1, 19\], expected \[2, 19\]"),
        ((2, 7), (19, 2), r"the residual is \[19, 2\], expected \[2, 19\]"),
    ],
)
def test_inputs_that_fit_not_are_refused(
    twins: ModuleType, x: tuple[int, ...], residual: tuple[int, ...], message: str
) -> None:
    session = twins.open_linear(draw(7, 19), "none", None, residual=True)
    with pytest.raises(Exception, match=message):
        session.run(None, {"x": draw(*x), "r": draw(*residual)})


@needs_fp32
@pytest.mark.parametrize(
    ("key", "value", "mask", "message"),
    [
        ((2, 3, 9, 15), (2, 3, 9, 16), (1,), "15 dimensions of a head of K, expected 16"),
        ((2, 3, 9, 16), (2, 3, 8, 16), (1,), "8 tokens of V, expected 9"),
        ((5, 3, 9, 16), (2, 3, 9, 16), (1,), "5 rows of the memory, expected 2"),
        ((2, 2, 9, 16), (2, 3, 9, 16), (1,), "2 heads of the memory, expected 3"),
        ((2, 3, 0, 16), (2, 3, 0, 16), (1,), "there are no keys"),
        ((2, 3, 9, 16), (2, 3, 9, 16), (8,), r"the mask is \[8\], which does not broadcast to \[2, 3, 4, 9\]"),
    ],
)
def test_a_memory_that_fits_not_is_refused(
    twins: ModuleType, key: tuple[int, ...], value: tuple[int, ...], mask: tuple[int, ...], message: str
) -> None:
    session = twins.open_model(attention_model(twins, [4, 4, 4], 1, ("bhtd",) * 4))
    with pytest.raises(Exception, match=message):
        session.run(None, {"q": draw(2, 3, 4, 16), "k": draw(*key), "v": draw(*value), "m": draw(*mask)})


@needs_fp32
@pytest.mark.parametrize(
    ("ranks", "changes", "message"),
    [
        ([3, 4, 4], {}, r"`Q` is \[2, 2, 2\], expected 4 axes"),
        ([4, 3, 4], {"key_layout": "bt(hd)"}, r"`K` is \[2, 2, 2\], expected a multiple of 3 heads at the end"),
        ([4, 4, 4], {}, "2 heads of Q, expected 3"),
    ],
)
def test_layouts_that_fit_not_are_refused(
    twins: ModuleType, ranks: list[int], changes: dict[str, Any], message: str
) -> None:
    session = twins.open_model(attention_model(twins, ranks, 0, ("bhtd",) * 4, **changes))
    with pytest.raises(Exception, match=message):
        session.run(None, {name: draw(*[2] * rank) for name, rank in zip("qkv", ranks)})


@needs_fp32
@pytest.mark.parametrize("layout", ["thbd", "bt(hd) 0/3", "bt(hd) 4/3", "bt(hd) 1/", "bhtd 1/2"])
def test_an_unknown_layout_is_refused_when_it_is_loaded(twins: ModuleType, layout: str) -> None:
    with pytest.raises(Exception, match=f"Attention: unknown layout `{re.escape(layout)}`"):
        twins.open_model(attention_model(twins, [4, 4, 4], 0, ("bhtd", layout, "bhtd", "bhtd")))


@needs_fp32
@pytest.mark.parametrize("offset", [0, 4, 64])
def test_weights_are_read_wherever_they_lie_in_a_file(twins: ModuleType, offset: int, tmp_path: Path) -> None:
    weights, x = draw(7, 19), draw(3, 7)
    block = twins.packed(weights)
    sizes = {"inner": 7, "columns": 19, "activation": "none"}
    model = twins.operator_model("Linear", {"x": 2}, {"w": block}, "x w", **sizes)
    (tmp_path / "weights.bin").write_bytes(bytes(offset) + block.tobytes())
    (tensor,) = model.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", offset), ("length", block.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    onnx.save(model, str(tmp_path / "model.onnx"))
    (y,) = twins.open_model(str(tmp_path / "model.onnx")).run(None, {"x": x})
    np.testing.assert_allclose(y, x @ weights, rtol=0, atol=2e-5)

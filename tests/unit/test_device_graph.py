"""Graphs rewritten for our own kernels: what is found in them, what is left alone, and that all compute the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from vlrt import device_graph
from vlrt.device_graph.tensors import Array
from vlrt.engines import custom_kernels

HEAD = '<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>\ng'
LEVEL = 2
MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Case:
    """A graph in ONNX's text form, and how many operators of ours it should have.

    Args:
        name: what it shows.
        signature: its inputs and outputs; `batch` is 2, `rows` are 6, `length` is 5 when it runs.
        body: its nodes.
        ours: for example ``2 Linear``.
        weights: those with random values; `s` positive, `one` all ones, `z` all zeros.
        constants: those with values.
    """

    name: str
    signature: str
    body: str
    ours: str
    weights: str = ""
    constants: str = ""

    @property
    def counts(self) -> dict[str, int]:
        return {kind: int(count) for count, kind in re.findall(r"(\d+) (\w+)", self.ours)}


MATRIX = "float[8,24] w, float[24] bias"
TWO = "float[8,24] w, float[8,24] v"
BYTES = "int8[8,24] w, float[24] s, float[24] bias, int8[24] z"


def linear(name: str, body: str, ours: str = "1 Linear", weights: str = MATRIX) -> Case:
    return Case(
        name, "(float[batch,length,8] x, float[batch,length,24] r) => (float[batch,length,24] y)", body, ours, weights
    )


def flat(name: str, body: str, ours: str = "1 Linear", weights: str = MATRIX) -> Case:
    return Case(name, "(float[batch,8] x) => (float[batch,24] y)", body, ours, weights)


def bytewise(name: str, body: str, ours: str = "1 LinearInt8", weights: str = BYTES) -> Case:
    # One row: ours quantises each row by itself, onnxruntime all of them together.
    return Case(name, "(float[1,8] x, float[1,24] r) => (float[1,24] y)", body, ours, weights)


def attention(name: str, body: str, ours: str = "1 Attention", more: str = "", out: str = "batch,length,12") -> Case:
    given = ", ".join(f"float[batch,length,12] {side}" for side in "qkv")
    constants = "int64[4] heads = {0, 0, 3, 4}, int64[3] whole = {0, 0, 12}, float half = {0.5}, int64[1] last = {3}"
    return Case(name, f"({given}{more}) => (float[{out}] y)", body, ours, constants=constants)


PARTED = "".join(f"{s}p = Reshape({s}, heads) {s}t = Transpose<perm=[0,2,1,3]>({s}p)" for s in "qkv")
ONE = "float[40,32,1,1] w, float[40] bias"
CONV = "Conv<pads=[1,1,1,1]>"


def convolution(
    name: str, body: str, ours: str = "1 Conv3x3", weights: str = "float[40,32,3,3] w, float[40] bias", out: str = ""
) -> Case:
    given = "float[batch,32,length,rows] x, float[batch,40,length,rows] r, float[batch,40,1,1] t"
    return Case(name, f"({given}) => (float[{out or 'batch,40,length,rows'}] y)", body, ours, weights)


def grouped(name: str, body: str, ours: str = "1 GroupNorm", one: str = "", weights: str = "") -> Case:
    signature = "(float[batch,6,length,rows] x) => (float[batch,6,length,rows] y)"
    before = f"p = Reshape(x, parted) {one} n = LayerNormalization<axis=-1, epsilon=0.001>(p, one)"
    return Case(
        name,
        signature,
        f"{before} w = Shape(x) j = Reshape(n, w) f = Mul(j, s) {body}",
        ours,
        weights or "float[6,1,1] s, float[6,1,1] bias, float one",
        "int64[3] parted = {0, 2, -1}",
    )


KEYS = PARTED + "kk = Transpose<perm=[0,1,3,2]>(kt)"
ENDS = "m = MatMul(p, vt) n = Transpose<perm=[0,2,1,3]>(m) y = Reshape(n, whole)"

FOUND = [
    linear("a product", "y = MatMul(x, w)"),
    linear("a product with a bias", "a = MatMul(x, w) y = Add(bias, a)"),
    linear("a bias and ReLU", "a = MatMul(x, w) b = Add(a, bias) y = Relu(b)"),
    linear("a bias and GELU", "a = MatMul(x, w) b = Add(a, bias) y = Gelu(b)"),
    linear("GELU by tanh", 'a = MatMul(x, w) y = Gelu<approximate="tanh">(a)'),
    linear("SiLU", "a = MatMul(x, w) b = Sigmoid(a) y = Mul(a, b)"),
    linear("the quick GELU", f"a = MatMul(x, w) b = Add(a, bias) y = {MICROSOFT}.QuickGelu<alpha=1.702>(b)"),
    linear("a bias and a residual", "a = MatMul(x, w) b = Add(a, bias) y = Add(r, b)"),
    linear("an activation and a residual", "a = MatMul(x, w) b = Relu(a) y = Add(b, r)"),
    linear("a residual, then a bias", "a = MatMul(x, w) b = Add(a, r) y = Add(b, bias)", "1 Linear"),
    linear(
        "two products added",
        "a = MatMul(x, w) b = MatMul(x, v) y = Add(a, b)",
        "2 Linear",
        "float[8,24] w, float[8,24] v",
    ),
    linear("a weight used twice", "a = MatMul(x, w) n = Neg(x) c = MatMul(n, w) y = Sub(a, c)", "2 Linear"),
    flat("Gemm", "y = Gemm(x, w, bias)"),
    flat("Gemm of a transposed weight", "y = Gemm<transB=1>(x, w, bias)", weights="float[24,8] w, float[1,24] bias"),
    flat("FusedMatMul of a transposed weight", f"y = {MICROSOFT}.FusedMatMul<transB=1>(x, w)", weights="float[24,8] w"),
    Case(
        "an embedding that is the head too",
        "(int64[batch] i) => (float[batch,30] y)",
        "a = Gather(w, i) y = Gemm<transB=1>(a, w)",
        "1 Linear",
        "float[30,8] w",
    ),
    Case(
        "an embedding that is the head too, in bytes",
        "(float[1,8] x, int64[rows] i) => (float[1,24] y, float[rows,8] e)",
        f"y = {MICROSOFT}.DynamicQuantizeMatMul(x, w, s) a = Gather<axis=1>(w, i) b = Cast<to=1>(a) t = Gather(s, i)"
        " c = Mul(b, t) e = Transpose<perm=[1,0]>(c)",
        "1 LinearInt8 1 EmbedInt8",
        BYTES,
    ),
    Case(
        "a layer norm",
        "(float[batch,length,8] x) => (float[batch,length,8] y)",
        "y = LayerNormalization<epsilon=0.001>(x, s, z)",
        "1 LayerNorm",
        "float[8] s, float[8] z",
    ),
    bytewise("a product of bytes", f"y = {MICROSOFT}.DynamicQuantizeMatMul(x, w, s)"),
    bytewise("with a zero point", f"y = {MICROSOFT}.DynamicQuantizeMatMul(x, w, s, z)"),
    bytewise(
        "with one scale, a bias, GELU and a residual",
        f"a = {MICROSOFT}.DynamicQuantizeMatMul(x, w, s, , bias) b = Gelu(a) y = Add(b, r)",
        weights="int8[8,24] w, float s, float[24] bias",
    ),
    bytewise(
        "a chain of integers",
        "a, t, o = DynamicQuantizeLinear(x) b = MatMulInteger(a, w, o) c = Cast<to=1>(b) f = Mul(t, s) d = Mul(c, f)"
        " y = Add(d, bias)",
    ),
    bytewise(
        "two products of one quantised factor",
        "a, t, o = DynamicQuantizeLinear(x) b = MatMulInteger(a, w, o) c = Cast<to=1>(b) f = Mul(t, s) d = Mul(c, f)"
        " e = MatMulInteger(a, v, o) g = Cast<to=1>(e) h = Mul(t, s) i = Mul(g, h) y = Sub(d, i)",
        "2 LinearInt8",
        "int8[8,24] w, int8[8,24] v, float[24] s",
    ),
    attention("attention", KEYS + "s = MatMul(qt, kk) f = Mul(s, half) p = Softmax<axis=-1>(f)" + ENDS),
    attention("unscaled attention", KEYS + "s = MatMul(qt, kk) p = Softmax<axis=3>(s)" + ENDS),
    attention("attention of divided scores", KEYS + "s = MatMul(qt, kk) f = Div(s, half) p = Softmax(f)" + ENDS),
    attention(
        "attention with a mask",
        KEYS + "s = MatMul(qt, kk) f = Mul(s, half) e = Add(f, mask) p = Softmax<axis=-1>(e)" + ENDS,
        more=", float[batch,1,1,length] mask",
    ),
    attention(
        "attention with a mask of two axes",
        KEYS + "s = MatMul(qt, kk) e = Add(mask, s) p = Softmax<axis=-1>(e)" + ENDS,
        more=", float[length,length] mask",
    ),
    attention(
        "attention of transposed scores",
        PARTED + "qq = Transpose<perm=[0,1,3,2]>(qt) vv = Transpose<perm=[0,1,3,2]>(vt) s = MatMul(kt, qq)"
        " p = Softmax<axis=2>(s) m = MatMul(vv, p) n = Transpose<perm=[0,3,1,2]>(m) y = Reshape(n, whole)",
    ),
    attention(
        "attention that gives channels first",
        KEYS + "s = MatMul(qt, kk) p = Softmax<axis=-1>(s) vv = Transpose<perm=[0,1,3,2]>(vt)"
        f" y = {MICROSOFT}.FusedMatMul<transB=1>(vv, p)",
        out="batch,3,4,length",
    ),
    attention(
        "attention to one memory for all",
        KEYS + "s = MatMul(qt, mk) p = Softmax<axis=-1>(s)" + ENDS.replace("vt", "mv"),
        more=", float[1,3,4,7] mk, float[1,3,7,4] mv",
    ),
    convolution("a convolution", f"y = {CONV}(x, w, bias)"),
    convolution("a convolution and ReLU", f"a = {CONV}(x, w, bias) y = Relu(a)"),
    convolution("a window of one place", "a = Conv(x, w, bias) y = Add(a, r)", "1 Conv1x1", ONE),
    convolution("a convolution with a residual", f"a = {CONV}(x, w) y = Add(r, a)"),
    convolution("a residual, then ReLU", f"a = {CONV}(x, w, bias) b = Add(a, r) y = Relu(b)"),
    convolution(
        "a shift of each picture, then a residual", f"a = {CONV}(x, w, bias) b = Add(a, t) c = Add(b, r) y = Relu(c)"
    ),
    grouped("a group norm", "y = Add(f, bias)"),
    grouped("a group norm and SiLU", "a = Add(bias, f) b = Sigmoid(a) y = Mul(a, b)"),
    attention(
        "attention to the parts of one product",
        "qs, ks, vs = Split<axis=2, num_outputs=3>(qkv) "
        + re.sub(r"Reshape\((\w),", r"Reshape(\1s,", KEYS)
        + "s = MatMul(qt, kk) p = Softmax<axis=-1>(s)"
        + ENDS,
        more=", float[batch,length,36] qkv",
    ),
    Case(
        "attention of beams to their picture's memory",
        "(float[rows,1,12] q, float[batch,3,7,4] k, float[batch,3,4,7] v) => (float[rows,1,12] y)",
        "a = Shape<end=1>(k) b = Concat<axis=0>(a, rest) c = Reshape(q, b) d = Transpose<perm=[0,2,3,1]>(c)"
        " s = MatMul(k, d) p = Softmax<axis=2>(s) m = MatMul(v, p) n = Transpose<perm=[0,3,1,2]>(m)"
        " e = Shape<end=2>(q) f = Concat<axis=0>(e, width) y = Reshape(n, f)",
        "1 Attention",
        constants="int64[3] rest = {-1, 3, 4}, int64[1] width = {12}",
    ),
    Case(
        "a product that attention to a cache takes apart",
        "(float[batch,1,8] x, float[batch,2,9,8] k, float[batch,2,9,8] v, int32[batch] last, int32[1] total)"
        " => (float[batch,1,16] y, float[batch,2,9,8] nk, float[batch,2,9,8] nv)",
        "p = MatMul(x, w) a, b, c = Split<axis=2, num_outputs=3>(p)"
        f" y, nk, nv = {MICROSOFT}.GroupQueryAttention<num_heads=2, kv_num_heads=2>(a, b, c, k, v, last, total)",
        "1 CachedAttention, 1 Linear",
        "float[8,48] w",
    ),
    linear(
        "a gated unit",
        "a, b = Split<axis=-1, num_outputs=2>(r) g = Gelu(b) c = Mul(a, g) y = Concat<axis=2>(c, c)",
        "1 GatedGelu",
        "",
    ),
    attention("onnxruntime's attention", f"y = {MICROSOFT}.MultiHeadAttention<num_heads=3, scale=0.3>(q, k, v)"),
]

LEFT = [
    Case(
        "attention to a window of a cache",
        "(float[batch,1,16] x, float[batch,2,9,8] k, float[batch,2,9,8] v, int32[batch] last, int32[1] total)"
        " => (float[batch,1,16] y, float[batch,2,9,8] nk, float[batch,2,9,8] nv)",
        f"y, nk, nv = {MICROSOFT}.GroupQueryAttention"
        "<num_heads=2, kv_num_heads=2, local_window_size=3>(x, x, x, k, v, last, total)",
        "",
    ),
    linear("a factor that is no weight", "a = Transpose<perm=[0,2,1]>(x) b = MatMul(x, a) y = MatMul(b, r)", ""),
    linear(
        "a residual of another shape",
        "a = MatMul(x, w) y = Add(a, one)",
        "1 Linear",
        "float[8,24] w, float[1,5,24] one",
    ),
    linear("a bias of one number", "a = MatMul(x, w) y = Add(a, one)", "1 Linear", "float[8,24] w, float one"),
    linear("a result that is read twice", "a = MatMul(x, w) b = Relu(a) c = Add(a, bias) y = Sub(b, c)", "1 Linear"),
    linear("a leaky activation", "a = MatMul(x, w) y = LeakyRelu(a)", "1 Linear"),
    linear("a stack of weights", "y = MatMul(x, w)", "", "float[1,8,24] w"),
    linear("double precision", "a = Cast<to=11>(x) b = MatMul(a, w) y = Cast<to=1>(b)", "", "double[8,24] w"),
    Case("a weight on the left", "(float[8,batch] x) => (float[24,batch] y)", "y = MatMul(w, x)", "", "float[24,8] w"),
    flat("Gemm with a factor", "y = Gemm<alpha=0.5>(x, w, bias)", ""),
    Case(
        "a weight that callers may replace",
        "(float[batch,8] x, float[8,24] w) => (float[batch,24] y)",
        "y = MatMul(x, w)",
        "",
        "float[8,24] w",
    ),
    bytewise(
        "bytes with a zero point of their own",
        f"y = {MICROSOFT}.DynamicQuantizeMatMul(x, w, s, one)",
        "",
        BYTES + ", int8[24] one",
    ),
    Case(
        "columns of bytes that are no product's",
        "(int64[rows] i) => (float[rows,8] e)",
        "a = Gather<axis=1>(w, i) b = Cast<to=1>(a) t = Gather(s, i) c = Mul(b, t) e = Transpose<perm=[1,0]>(c)",
        "",
        BYTES,
    ),
    Case(
        "a layer norm over two axes",
        "(float[batch,4,8] x) => (float[batch,4,8] y)",
        "y = LayerNormalization<axis=1>(x, s, z)",
        "",
        "float[4,8] s, float[4,8] z",
    ),
    Case(
        "a layer norm without a summand",
        "(float[batch,8] x) => (float[batch,8] y)",
        "y = LayerNormalization(x, s)",
        "",
        "float[8] s",
    ),
    bytewise("unsigned bytes", f"y = {MICROSOFT}.DynamicQuantizeMatMul(x, w, s)", "", "uint8[8,24] w, float[24] s"),
    grouped("a group norm of a part", "y = Add(f, bias)", "", weights="float[6,1,1] s, float[6,4,1] bias, float one"),
    linear(
        "a gate by tanh",
        'a, b = Split<axis=-1, num_outputs=2>(r) g = Gelu<approximate="tanh">(b) c = Mul(a, g)'
        " y = Concat<axis=2>(c, c)",
        "",
        "",
    ),
    linear(
        "a gate of itself",
        "a, b = Split<axis=-1, num_outputs=2>(r) g = Gelu(b) c = Mul(g, b) y = Concat<axis=2>(c, a)",
        "",
        "",
    ),
    convolution("a second residual", f"a = {CONV}(x, w) b = Add(a, r) y = Add(b, r)"),
    convolution("a convolution in groups", "y = Conv<pads=[1,1,1,1], group=8>(x, w)", "", "float[40,4,3,3] w"),
    convolution("a window of another size", "y = Conv<pads=[2,2,2,2]>(x, w)", "", "float[40,32,5,5] w"),
    convolution("few channels", f"a = {CONV}(x, w) y = Add(a, r)", "", "float[1,32,3,3] w"),
    convolution(
        "a convolution in steps", "y = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w)", "", out="batch,40,lower,fewer"
    ),
    convolution("no padding", "y = Conv(x, w)", "", out="batch,40,lower,fewer"),
    convolution("an activation that is not ours", f"a = {CONV}(x, w) y = LeakyRelu(a)", "", "float[40,32,3,3] w"),
    attention(
        "scores that are given out too",
        KEYS + "s = MatMul(qt, kk) p = Softmax<axis=-1>(s) m = MatMul(p, vt) t = ReduceSum(p, last) y = Add(m, t)",
        "",
        out="batch,3,length,4",
    ),
    attention(
        "a mask that makes more rows",
        KEYS + "s = MatMul(qt, kk) e = Add(s, mask) p = Softmax<axis=-1>(e) y = MatMul(p, vt)",
        "",
        ", float[rows,1,length,length] mask",
        "rows,3,length,4",
    ),
    Case(
        "attention in double precision",
        "(double[batch,3,length,4] q, double[batch,3,4,length] k) => (double[batch,3,length,length] y)",
        "s = MatMul(q, k) p = Softmax<axis=-1>(s) y = MatMul(p, s)",
        "",
    ),
    attention("softmax over heads", KEYS + "s = MatMul(qt, kk) p = Softmax<axis=1>(s)" + ENDS, ""),
    attention(
        "softmax over queries",
        KEYS + "s = MatMul(qt, kk) p = Softmax<axis=2>(s)" + ENDS,
        "",
    ),
    attention(
        "more rows of keys than of queries",
        KEYS + "s = MatMul(qt, mk) p = Softmax<axis=-1>(s) y = MatMul(p, mv)",
        "",
        ", float[rows,3,4,7] mk, float[rows,3,7,4] mv",
        "rows,3,length,4",
    ),
    attention(
        "onnxruntime's attention with a bias",
        f"y = {MICROSOFT}.MultiHeadAttention<num_heads=3>(q, k, v, threefold)",
        "",
        ", float[36] threefold",
    ),
]


KINDS = {"float": np.float32, "double": np.float64, "int8": np.int8, "uint8": np.uint8}
SIZES = {"batch": 2, "rows": 6, "length": 5}
CACHED = {"last": 6, "total": 7}
"""The place of a cache's last token, and how many it holds then."""


def weights_of(case: Case) -> Iterator[onnx.TensorProto]:
    random = np.random.default_rng(1)
    for kind, dims, name in re.findall(r"(\w+?)(\[[\d,]*\])? (\w+)(?:, |$)", case.weights):
        values = random.standard_normal([int(size) for size in dims.strip("[]").split(",") if size]) / 4
        values = {"s": np.abs(values), "one": np.ones_like(values), "z": np.zeros_like(values)}.get(name, values)
        if "int8" in kind and name == "w":
            values = np.abs(values * 100) if kind == "uint8" else values * 100
        yield onnx.numpy_helper.from_array(values.astype(KINDS[kind]), name)


def saved(case: Case, folder: Path) -> Path:
    """A case's graph as onnxruntime optimises and saves it."""
    constants = f"<{case.constants}>" if case.constants else ""
    model = onnx.parser.parse_model(f"{HEAD} {case.signature} {constants} {{ {case.body} }}")
    model.graph.initializer.extend(weights_of(case))
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.optimized_model_filepath = str(folder / "saved.onnx")
    onnxruntime.InferenceSession(
        model.SerializeToString(),
        settings,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["NchwcTransformer"],
    )
    return folder / "saved.onnx"


def rewritten(case: Case, folder: Path) -> tuple[Path, Path, device_graph.Counts]:
    """A case's graph before and after, and what it consists of then."""
    before, after = saved(case, folder), folder / "after"
    after.mkdir()
    counts = device_graph.rewrite(before, after / "graph.onnx", after / "graph.bin", LEVEL)
    return before, after / "graph.onnx", counts


def run(path: Path) -> dict[str, Array]:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    custom_kernels.register(settings)
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    given = {}
    for tensor in session.get_inputs():
        shape = [size if isinstance(size, int) else SIZES[size] for size in tensor.shape]
        whole = tensor.type == "tensor(int64)"
        given[tensor.name] = random.integers(0, 9, shape) if whole else random.standard_normal(shape).astype(np.float32)
        if tensor.name in CACHED:
            given[tensor.name] = np.full(shape, CACHED[tensor.name], np.int32)
    return dict(zip([t.name for t in session.get_outputs()], session.run(None, given)))


@pytest.mark.parametrize("case", FOUND + LEFT, ids=lambda case: case.name)
def test_patterns(case: Case, tmp_path: Path) -> None:
    _, after, counts = rewritten(case, tmp_path)
    assert counts.ours == case.counts, counts.others
    assert after.exists() == bool(case.counts), "what has nothing of ours is not written"


@pytest.mark.skipif(custom_kernels.level() < LEVEL, reason="the processor has no AVX-512 VNNI")
@pytest.mark.parametrize("case", [case for case in FOUND + LEFT if case.ours], ids=lambda case: case.name)
def test_rewritten_graphs_compute_the_same(case: Case, tmp_path: Path) -> None:
    before, after, _ = rewritten(case, tmp_path)
    expected, found = run(before), run(after)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5 * max(1, np.abs(values).max()))


def test_parts_of_a_product_are_read_where_they_lie(tmp_path: Path) -> None:
    for name, others in (
        ("attention to the parts of one product", {}),
        ("attention of beams to their picture's memory", {}),
        ("a product that attention to a cache takes apart", {}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        case = next(case for case in FOUND if case.name == name)
        assert rewritten(case, folder)[2].others == others


def test_lower_levels_leave_the_rest_to_onnxruntime(tmp_path: Path) -> None:
    case = next(case for case in FOUND if case.name == "a product of bytes")
    before = saved(case, tmp_path)
    assert not device_graph.rewrite(before, tmp_path / "a.onnx", tmp_path / "a.bin", 1).ours
    assert not device_graph.rewrite(before, tmp_path / "a.onnx", tmp_path / "a.bin", 0).ours


@pytest.mark.parametrize(
    ("body", "weights", "apart"),
    [
        (f"y = {CONV}(x, w)", "float[40,32,3,3] w", True),
        ("y = Conv(x, w)", "float[40,32,1,1] w", False),
        (f"a = {CONV}(x, w) y = Conv<pads=[2,2,2,2]>(a, v)", "float[40,32,3,3] w, float[40,40,5,5] v", False),
        (f"a = {CONV}(x, w) y = Conv(a, v)", "float[40,32,3,3] w, float[40,40,1,1] v", True),
    ],
)
def test_onnxruntime_leaves_channels_apart_where_products_are_saved(
    body: str, weights: str, apart: bool, tmp_path: Path
) -> None:
    case = convolution("channels", body, weights=weights)
    model = onnx.parser.parse_model(f"{HEAD} {case.signature} {{ {case.body} }}")
    model.graph.initializer.extend(weights_of(case))
    onnx.save(model, tmp_path / "graph.onnx")
    assert device_graph.keeps_channels_apart(tmp_path / "graph.onnx") == apart

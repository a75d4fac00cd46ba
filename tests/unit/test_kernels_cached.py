"""Attention to a cache by our own kernel, beside onnxruntime's."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from onnx import TensorProto, helper

from vlrt.engines import custom_kernels

pytestmark = pytest.mark.skipif(custom_kernels.level() < 1, reason="the processor has no AVX-512")

WIDTH, POSITIONS = 24, 40
SCALE = 0.3
OUTPUTS = ["y", "next_keys", "next_values"]

Feeds = dict[str, npt.NDArray[np.float32] | npt.NDArray[np.int32]]


@dataclass(frozen=True)
class Step:
    """New tokens of some rows, and the last position of each row with them."""

    heads: int
    key_heads: int
    tokens: int
    last: tuple[int, ...]
    joined: bool = False

    def feeds(self) -> Feeds:
        random, rows = np.random.default_rng(0), len(self.last)
        new = [
            random.standard_normal((rows, self.tokens, heads * WIDTH), np.float32)
            for heads in (self.heads, self.key_heads, self.key_heads)
        ]
        keys, values = random.standard_normal((2, rows, self.key_heads, POSITIONS, WIDTH), np.float32)
        parts = {"q": np.concatenate(new, -1)} if self.joined else dict(zip("qkv", new))
        total = np.array([max(self.last) + 1], np.int32)
        return {**parts, "keys": keys, "values": values, "last": np.array(self.last, np.int32), "total": total}

    def session(self, twins: ModuleType, ours: bool) -> onnxruntime.InferenceSession:
        feeds = self.feeds()
        inputs = [name if name in feeds else "" for name in ("q", "k", "v", "keys", "values", "last", "total")]
        if ours:
            sizes = {"heads": self.heads, "key_heads": self.key_heads, "scale": SCALE}
            node = helper.make_node("CachedAttention", inputs, OUTPUTS, domain=custom_kernels.DOMAIN, **sizes)
        else:
            sizes = {"num_heads": self.heads, "kv_num_heads": self.key_heads, "scale": SCALE}
            node = helper.make_node("GroupQueryAttention", inputs, OUTPUTS, domain="com.microsoft", **sizes)
        kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int32): TensorProto.INT32}
        given = [helper.make_tensor_value_info(name, kinds[x.dtype], [None] * x.ndim) for name, x in feeds.items()]
        taken = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in OUTPUTS]
        domains = [("", 21), ("com.microsoft", 1), (custom_kernels.DOMAIN, 1)]
        graph = helper.make_graph([node], "step", given, taken)
        opsets = [helper.make_opsetid(*domain) for domain in domains]
        session: onnxruntime.InferenceSession = twins.open_model(
            helper.make_model(graph, opset_imports=opsets, ir_version=10)
        )
        return session


STEPS = [
    Step(4, 4, 1, (3,)),
    Step(4, 2, 1, (5, 0, 39)),
    Step(4, 4, 1, (5, 7), joined=True),
    Step(4, 4, 3, (20,)),
    Step(4, 2, 20, (30,), joined=True),
    Step(4, 1, 5, (4, 2)),
    Step(4, 4, 20, (19, 19)),
    Step(4, 4, 1, (POSITIONS,)),
]


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_onnxruntimes_attention_to_a_cache_is_reproduced(twins: ModuleType, step: Step) -> None:
    feeds = step.feeds()
    expected, found = (step.session(twins, ours).run(None, feeds) for ours in (False, True))
    assert [x.shape for x in found] == [x.shape for x in expected]
    for row, last in enumerate(step.last):
        tokens = min(step.tokens, last + 1)
        np.testing.assert_allclose(found[0][row, :tokens], expected[0][row, :tokens], rtol=0, atol=2e-6)
        for cache, other in zip(found[1:], expected[1:]):
            np.testing.assert_array_equal(cache[row, :, : last + 1], other[row, :, : last + 1])


def test_rows_of_several_tokens_continue_each_from_its_own_place(twins: ModuleType) -> None:
    both = Step(4, 2, 3, (20, 9))
    feeds = both.feeds()
    y = both.session(twins, True).run(None, feeds)[0]
    for row, last in enumerate(both.last):
        alone = Step(4, 2, 3, (last,))
        one = {name: x if name == "total" else x[row : row + 1] for name, x in feeds.items()}
        one["total"] = np.array([last + 1], np.int32)
        np.testing.assert_array_equal(alone.session(twins, True).run(None, one)[0][0], y[row])


def test_a_cache_that_is_bound_to_its_own_place_is_written_there(twins: ModuleType) -> None:
    step = Step(4, 4, 1, (5, 7))
    feeds, session = step.feeds(), step.session(twins, True)
    expected = session.run(None, feeds)
    binding = session.io_binding()
    held = {name: onnxruntime.OrtValue.ortvalue_from_numpy(x) for name, x in feeds.items()}
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("y")
    binding.bind_ortvalue_output("next_keys", held["keys"])
    binding.bind_ortvalue_output("next_values", held["values"])
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], expected[0])
    for name, other in zip(("keys", "values"), expected[1:]):
        for row, last in enumerate(step.last):
            np.testing.assert_array_equal(held[name].numpy()[row, :, : last + 1], other[row, :, : last + 1])
            np.testing.assert_array_equal(held[name].numpy()[row, :, last + 1 :], feeds[name][row, :, last + 1 :])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"last": np.array([5], np.int32)}, r"the last positions is \[1\], expected one for each row"),
        ({"last": np.array([5, 40], np.int32)}, "row 1 ends at position 40, expected 0 to 39"),
        (
            {"last": np.array([5, 50], np.int32), "total": np.array([51], np.int32)},
            "ends at position 50, expected 0 to 40",
        ),
        ({"last": np.array([-1, 5], np.int32), "total": np.array([0], np.int32)}, None),
        ({"total": np.array([1, 2], np.int32)}, r"the total length is \[2\], expected \[1\]"),
        ({"k": np.zeros((2, 2, 96), np.float32)}, r"K is \[2, 2, 96\], expected the keys of Q's tokens"),
        ({"v": np.zeros((2, 1, 95), np.float32)}, r"V is \[2, 1, 95\], expected K's shape"),
        ({"q": np.zeros((2, 1, 95), np.float32)}, r"Q is \[2, 1, 95\], expected 96"),
        ({"values": np.zeros((2, 4, 39, WIDTH), np.float32)}, "the values' cache is"),
        ({"keys": np.zeros((2, 3, POSITIONS, WIDTH), np.float32)}, "the keys' cache is"),
    ],
)
def test_what_does_not_fit_is_refused(twins: ModuleType, changed: Feeds, message: str | None) -> None:
    step = Step(4, 4, 1, (5, 7))
    feeds = {**step.feeds(), **changed}
    if message is None:
        assert np.isfinite(step.session(twins, True).run(None, feeds)[0]).all()
    else:
        with pytest.raises(Exception, match=message):
            step.session(twins, True).run(None, feeds)


@pytest.fixture
def twins(kernel_twins: ModuleType) -> ModuleType:
    return kernel_twins

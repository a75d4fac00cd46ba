"""`generate` over a session: bindings are made once per batch shape, buffers are used again, threads get their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from vlrt.decode import DecodeOptions, StepModel, generate
from vlrt.engines.session import Array, check_array, check_inputs
from vlrt.errors import BundleError, UsageError, VlrtError
from vlrt.manifest import DecodeSpec, GraphSpec, RecordSpec, StateSpec, TensorSpec

VOCABULARY, REGIONS, WIDTH = 30, 5, 6


def spec_of(**changes: Any) -> DecodeSpec:
    given: dict[str, Any] = {
        "chain": ("image_encoder",),
        "step": "caption_step",
        "vocabulary": VOCABULARY,
        "start_ids": (0,),
        "end_ids": (1,),
        "pad_id": 0,
        "max_length": 16,
        "records": (RecordSpec("attention"),),
        "states": (
            StateSpec("recurrent", "h", "next_h", initial="first_h"),
            StateSpec("memory", "regions"),
            StateSpec("noise", "u"),
        ),
    }
    return DecodeSpec(**(given | changes))


class AttentionSession:
    """A session in NumPy: attends over the regions with the state, once per image and never per beam."""

    def __init__(self) -> None:
        tensor = TensorSpec
        self.spec = GraphSpec(
            "caption_step.onnx",
            "fp32",
            inputs=(
                tensor("token", "int64", ("rows",)),
                tensor("h", "float32", ("rows", WIDTH)),
                tensor("regions", "float32", ("images", "regions", WIDTH)),
                tensor("u", "float32", ("rows", 1)),
            ),
            outputs=(
                tensor("logits", "float32", ("rows", VOCABULARY)),
                tensor("next_h", "float32", ("rows", WIDTH)),
                tensor("attention", "float32", ("rows", "regions")),
                tensor("gate", "float32", ("rows", 2)),
            ),
        )
        draw = np.random.default_rng(2)
        self.embedding = draw.standard_normal((VOCABULARY, WIDTH)).astype(np.float32)
        self.output = (draw.standard_normal((WIDTH, VOCABULARY)) * 2).astype(np.float32)
        self.bindings: list[tuple[int, int]] = []

    def run(self, **arrays: Array) -> dict[str, Array]:
        raise NotImplementedError("steps are bound")  # a call would be the defect that this session is for

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Callable[[], None]:
        axes = check_inputs(self.spec, inputs)
        for tensor in self.spec.outputs:
            check_array(tensor, outputs[tensor.name], axes, "output")
        self.bindings.append((axes["rows"], axes["images"]))
        return lambda: self._step(inputs, outputs)

    def _step(self, i: Mapping[str, Array], o: Mapping[str, Array]) -> None:
        images, rows = len(i["regions"]), len(i["h"])
        h = i["h"].reshape(images, rows // images, WIDTH)
        scores = np.einsum("bkw,bsw->bks", h, i["regions"])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        seen = np.einsum("bks,bsw->bkw", weights, i["regions"]).reshape(rows, WIDTH)
        o["attention"][:] = weights.reshape(rows, -1)
        o["next_h"][:] = np.tanh(i["h"] + self.embedding[i["token"]] + seen)
        o["logits"][:] = o["next_h"] @ self.output


def chain_outputs(images: int, regions: int = REGIONS) -> dict[str, Array]:
    draw = np.random.default_rng(7)
    return {
        "first_h": draw.standard_normal((images, WIDTH)).astype(np.float32),
        "regions": draw.standard_normal((images, regions, WIDTH)).astype(np.float32),
        "something_else": np.zeros(3),
    }


BEAMS = DecodeOptions(num_beams=4, num_return_sequences=2, max_new_tokens=10)


def test_attention_comes_with_every_word() -> None:
    found = generate(StepModel(spec_of(), AttentionSession()), chain_outputs(3), BEAMS)
    assert [len(image) for image in found] == [2, 2, 2]
    for hypothesis in (h for image in found for h in image):
        attention = hypothesis.records["attention"]
        assert attention.shape == (len(hypothesis.tokens), REGIONS)
        assert attention.sum(-1) == pytest.approx(1, abs=1e-5)


def test_buffers_and_bindings_are_used_again() -> None:
    session = AttentionSession()
    model = StepModel(spec_of(), session)
    first = generate(model, chain_outputs(3), BEAMS)
    bound = list(session.bindings)
    assert len(bound) == len(set(bound)), "one binding per number of rows and images"
    assert [h.tokens for i in generate(model, chain_outputs(3), BEAMS) for h in i] == [
        h.tokens for i in first for h in i
    ]
    assert session.bindings == bound


def test_another_number_of_regions_gets_other_buffers() -> None:
    model = StepModel(spec_of(), AttentionSession())
    for regions in (5, 9, 5):
        found = generate(model, chain_outputs(2, regions), BEAMS)
        assert found[0][0].records["attention"].shape[1] == regions


def test_prompts_may_differ_from_the_start_ids() -> None:
    model = StepModel(spec_of(), AttentionSession())
    plain, primed = (generate(model, chain_outputs(2), BEAMS, prompts=p) for p in (None, [[0], [3, 4]]))
    assert plain[0][0].tokens == primed[0][0].tokens
    assert plain[1][0].tokens != primed[1][0].tokens


def test_threads_share_a_model() -> None:
    session = AttentionSession()
    model, options = StepModel(spec_of(), session), DecodeOptions(num_beams=3, max_new_tokens=8)
    expected = [h.tokens for (h,) in generate(model, chain_outputs(3), options)]
    found: list[list[tuple[int, ...]]] = []

    def work() -> None:
        for _ in range(5):
            found.append([h.tokens for (h,) in generate(model, chain_outputs(3), options)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 20


def test_a_model_with_room_for_fewer_tokens_says_so() -> None:
    model = StepModel(spec_of(max_length=8), AttentionSession())
    with pytest.raises(UsageError, match="`max_new_tokens` is 10, this decoder has room for 7"):
        generate(model, chain_outputs(1), BEAMS)


@pytest.mark.parametrize(
    ("initial", "prompts", "error", "message"),
    [
        ({"first_h": np.zeros((2, WIDTH), np.float32)}, None, BundleError, "starts from `regions`"),
        (chain_outputs(0), None, UsageError, "expected one number"),
        (chain_outputs(2) | {"first_h": np.zeros((3, WIDTH), np.float32)}, None, UsageError, "expected one number"),
        (chain_outputs(2), [[0]], UsageError, "expected one number"),
        (chain_outputs(1), [[]], UsageError, "needs ids"),
        (chain_outputs(1), [[VOCABULARY]], UsageError, "needs ids from 0 to 29"),
        (chain_outputs(1) | {"first_h": np.zeros((1, 9), np.float32)}, None, VlrtError, r"\[1, 9\], expected"),
        (chain_outputs(1) | {"first_h": np.zeros((1, WIDTH))}, None, VlrtError, "is float64"),
        (chain_outputs(1) | {"regions": np.zeros((1, WIDTH), np.float32)}, None, UsageError, "2 axes, expected 3"),
    ],
)
def test_initial_values_that_do_not_fit(
    initial: dict[str, Array], prompts: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        generate(StepModel(spec_of(), AttentionSession()), initial, BEAMS, prompts=prompts)


def test_an_input_that_nothing_fills_is_an_error() -> None:
    states = (StateSpec("recurrent", "h", "next_h", initial="first_h"), StateSpec("memory", "regions"))
    model = StepModel(spec_of(states=states), AttentionSession())
    with pytest.raises(BundleError, match="has the input `u`, which no state explains"):
        generate(model, chain_outputs(1), BEAMS)


def test_a_failing_engine_leaves_the_model_usable() -> None:
    session = AttentionSession()
    model = StepModel(spec_of(), session)
    working, calls = session._step, iter(range(99))

    def fail_once(i: Mapping[str, Array], o: Mapping[str, Array]) -> None:
        if next(calls) == 3:
            raise VlrtError("the engine failed")
        working(i, o)

    session._step = fail_once  # type: ignore[method-assign]
    with pytest.raises(VlrtError, match="the engine failed"):
        generate(model, chain_outputs(2), BEAMS)
    assert generate(model, chain_outputs(2), BEAMS)[0][0].tokens

"""The decoders: the fused step against the papers' formulas, and those against arithmetic by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vlrt_export.modules.attention import HARD, HARD_SAMPLED, MODES, SOFT, attention_weights
from vlrt_export.modules.caption_step import CaptionStep
from vlrt_export.modules.show_and_tell import ShowAndTell, ShowAndTellSizes, ShowAndTellStep
from vlrt_export.modules.show_attend_tell import ShowAttendTell, ShowAttendTellSizes
from vlrt_export.modules.tutorial_decoder import TutorialDecoder, TutorialSizes

IMAGES, BEAMS, REGIONS = 2, 3, 5
ROWS = IMAGES * BEAMS
SIZES = ShowAttendTellSizes(regions=7, annotation=6, hidden=8, embedding=9, attention=4, vocabulary=11)
TUTORIAL = TutorialSizes(regions=7, hidden=8, embedding=9, attention=4, vocabulary=11)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def _inputs() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randint(11, (ROWS,)), torch.randn(ROWS, 8), torch.randn(ROWS, 8)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _lstm(cell: dict[str, np.ndarray], x: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    gates = cell["weight_ih"] @ x + cell["bias_ih"] + cell["weight_hh"] @ h + cell["bias_hh"]
    i, f, g, o = np.split(gates, 4)
    c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
    return _sigmoid(o) * np.tanh(c), c


class Parameters:
    """A module's parameters as double arrays; `p("gate", v)` is the layer's affine map."""

    def __init__(self, module: nn.Module) -> None:
        self.arrays = {name: value.double().numpy() for name, value in module.state_dict().items()}

    def __call__(self, layer: str, v: np.ndarray) -> np.ndarray:
        return v @ self.arrays[f"{layer}.weight"].T + self.arrays[f"{layer}.bias"]

    def cell(self, name: str) -> dict[str, np.ndarray]:
        return {k.removeprefix(f"{name}."): v for k, v in self.arrays.items() if k.startswith(f"{name}.")}


class TestAttention:
    def test_soft_is_the_softmax(self) -> None:
        weights = attention_weights(torch.tensor([[0.0, math.log(3.0)]]), SOFT)
        torch.testing.assert_close(weights, torch.tensor([[0.25, 0.75]]))

    def test_hard_takes_the_likeliest_and_the_first_of_equals(self) -> None:
        energies = torch.tensor([[1.0, 3.0, 2.0], [4.0, 4.0, 0.0]])
        assert attention_weights(energies, HARD).tolist() == [[0, 1, 0], [1, 0, 0]]

    @pytest.mark.parametrize(
        ("uniform", "region"), [(0.0, 0), (0.09, 0), (0.11, 1), (0.29, 1), (0.31, 2), (0.9999999, 2)]
    )
    def test_sampled_inverts_the_cumulative_sum(self, uniform: float, region: int) -> None:
        energies = torch.tensor([[0.1, 0.2, 0.7]]).log()
        weights = attention_weights(energies, HARD_SAMPLED, torch.tensor([[uniform]]))
        assert weights.argmax().item() == region
        assert weights.sum().item() == 1

    def test_sampled_never_takes_an_impossible_region(self) -> None:
        energies = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0]]).expand(1000, 4)
        chosen = attention_weights(energies, HARD_SAMPLED, torch.rand(1000, 1)).sum(0)
        assert chosen[0] == chosen[2] == 0
        assert 400 < chosen[1] < 600

    def test_sampling_needs_uniforms(self) -> None:
        with pytest.raises(ValueError, match="hard-sampled"):
            attention_weights(torch.zeros(1, 2), HARD_SAMPLED)


class TestShowAttendTell:
    def test_memory_is_the_cards_formula(self) -> None:
        model = ShowAttendTell(SIZES)
        regions = torch.randn(1, REGIONS, 7)
        p = Parameters(model)
        a = np.maximum(p("annotation", regions[0].double().numpy()), 0)
        expected = (a, p("attention.annotation", a), *(np.tanh(p(n, a.mean(0))) for n in ("init_hidden", "init_cell")))
        for found, value in zip(model.memory(regions), expected, strict=True):
            np.testing.assert_allclose(found[0].numpy(), value, atol=1e-6)

    def test_step_is_the_cards_formula(self) -> None:
        model = ShowAttendTell(SIZES)
        annotations, keys, *_ = model.memory(torch.randn(IMAGES, REGIONS, 7))
        token, hidden, cell = _inputs()
        found = model.step(token, hidden, cell, (annotations, keys))
        p = Parameters(model)
        for row in range(ROWS):
            a = annotations[row // BEAMS].double().numpy()
            h, c, x = hidden[row].double().numpy(), cell[row].double().numpy(), p.arrays["embedding.weight"][token[row]]
            energies = p("attention.score", np.tanh(p("attention.annotation", a) + p("attention.hidden", h)))[:, 0]
            alpha = np.exp(energies) / np.exp(energies).sum()
            z = alpha @ a * _sigmoid(p("gate", h))
            h, c = _lstm(p.cell("lstm"), np.concatenate([x, z]), h, c)
            deep = np.tanh(x + p("output.hidden", h) + p("output.context", z))
            logits = p.arrays["embedding.weight"] @ deep + p.arrays["output.bias"]
            for value, expected in zip(found, (logits, h, c, alpha), strict=True):
                np.testing.assert_allclose(value[row].numpy(), expected, atol=1e-5)

    @pytest.mark.parametrize("mode", MODES)
    def test_the_fused_step_is_the_plain_one(self, mode: str) -> None:
        model = ShowAttendTell(SIZES, mode)
        annotations, keys, *_ = model.memory(torch.randn(IMAGES, REGIONS, 7))
        uniforms = torch.rand(ROWS, 1)
        inputs = _inputs()
        expected = model.step(*inputs, (annotations, keys), uniforms)
        found = CaptionStep(model.step_weights(), mode)(*inputs, annotations, keys, uniforms)
        for value, other in zip(found, expected, strict=True):
            torch.testing.assert_close(value, other)

    def test_the_tied_embedding_is_one_parameter(self) -> None:
        step = CaptionStep(ShowAttendTell(SIZES).step_weights(), SOFT)
        assert step.head_weight is step.embedding
        assert sum(p.shape == (11, 9) for p in step.parameters()) == 1

    def test_concatenation_keeps_every_fp16_value(self) -> None:
        model = ShowAttendTell(SIZES)
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
        for name, parameter in CaptionStep(model.step_weights(), SOFT).named_parameters():
            if parameter.dim() == 2:
                assert torch.equal(parameter.half().float(), parameter), name

    def test_a_scalar_gate_is_that_of_the_paper(self) -> None:
        model = ShowAttendTell(SIZES)
        beta = nn.Linear(8, 1)
        model.gate.weight.copy_(beta.weight.expand(6, 8))
        model.gate.bias.copy_(beta.bias.expand(6))
        annotations, keys, *_ = model.memory(torch.randn(IMAGES, REGIONS, 7))
        inputs = _inputs()
        found = CaptionStep(replace(model.step_weights(), gate=beta), SOFT)(*inputs, annotations, keys)
        torch.testing.assert_close(found, model.step(*inputs, (annotations, keys)))

    def test_without_a_gate_the_context_passes_whole(self) -> None:
        model = ShowAttendTell(SIZES)
        annotations, keys, *_ = model.memory(torch.randn(IMAGES, REGIONS, 7))
        inputs = _inputs()
        found = CaptionStep(replace(model.step_weights(), gate=None), SOFT)(*inputs, annotations, keys)
        model.gate.weight.zero_()
        model.gate.bias.fill_(100)
        torch.testing.assert_close(found, model.step(*inputs, (annotations, keys)))


class TestTutorialDecoder:
    def test_memory_and_step_are_the_references_formulas(self) -> None:
        model = TutorialDecoder(TUTORIAL)
        regions = torch.randn(IMAGES, REGIONS, 7)
        annotations, keys, first_hidden, first_cell = model.memory(regions)
        token, hidden, cell = _inputs()
        found = model.step(token, hidden, cell, (annotations, keys))
        p = Parameters(model)
        np.testing.assert_allclose(first_hidden[1].numpy(), p("init_h", regions[1].double().numpy().mean(0)), atol=1e-6)
        np.testing.assert_allclose(first_cell[1].numpy(), p("init_c", regions[1].double().numpy().mean(0)), atol=1e-6)
        for row in range(ROWS):
            a = regions[row // BEAMS].double().numpy()
            h, c = hidden[row].double().numpy(), cell[row].double().numpy()
            both = p("attention.encoder_att", a) + p("attention.decoder_att", h)
            energies = p("attention.full_att", np.maximum(both, 0))[:, 0]
            alpha = np.exp(energies) / np.exp(energies).sum()
            context = _sigmoid(p("f_beta", h)) * (alpha @ a)
            x = np.concatenate([p.arrays["embedding.weight"][token[row]], context])
            h, c = _lstm(p.cell("decode_step"), x, h, c)
            for value, expected in zip(found, (p("fc", h), h, c, alpha), strict=True):
                np.testing.assert_allclose(value[row].numpy(), expected, atol=1e-5)

    @pytest.mark.parametrize("mode", MODES)
    def test_the_fused_step_is_the_plain_one(self, mode: str) -> None:
        model = TutorialDecoder(TUTORIAL, mode)
        annotations, keys, *_ = model.memory(torch.randn(IMAGES, REGIONS, 7))
        uniforms = torch.rand(ROWS, 1)
        inputs = _inputs()
        expected = model.step(*inputs, (annotations, keys), uniforms)
        found = CaptionStep(model.step_weights(), mode)(*inputs, annotations, keys, uniforms)
        for value, other in zip(found, expected, strict=True):
            torch.testing.assert_close(value, other)


class TestShowAndTell:
    def test_the_image_is_the_first_input_of_a_zero_state(self) -> None:
        model = ShowAndTell(ShowAndTellSizes(regions=7, hidden=8, embedding=9, vocabulary=11))
        regions = torch.randn(IMAGES, REGIONS, 7)
        zero = torch.zeros(IMAGES, 8)
        expected = model.lstm(model.image_embedding(regions.mean(1)), (zero, zero))
        torch.testing.assert_close(model.memory(regions), expected)

    def test_steps_by_hand_and_fused(self) -> None:
        model = ShowAndTell(ShowAndTellSizes(regions=7, hidden=8, embedding=9, vocabulary=11))
        token, hidden, cell = _inputs()
        found = model.step(token, hidden, cell)
        torch.testing.assert_close(ShowAndTellStep(model)(token, hidden, cell), found)
        p = Parameters(model)
        for row in range(ROWS):
            x = p.arrays["embedding.weight"][token[row]]
            h, c = _lstm(p.cell("lstm"), x, hidden[row].double().numpy(), cell[row].double().numpy())
            for value, expected in zip(found, (p("output", h), h, c), strict=True):
                np.testing.assert_allclose(value[row].numpy(), expected, atol=1e-5)

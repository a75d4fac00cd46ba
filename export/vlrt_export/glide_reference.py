"""GLIDE's last rung: pictures against plain torch modules under a sampler written down from the papers.

OpenAI's own package is on no package index; the tests hold the same pictures against goldens made with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vlrt.bundle import Bundle
from vlrt.manifest import Measurement
from vlrt.tasks import load
from vlrt.text import TextCodec
from vlrt_export import picture_checks
from vlrt_export.glide_checkpoint import Glide, Half
from vlrt_export.graph import Check
from vlrt_export.modules.glide_clip import ClipGradient

Tolerance = Callable[[str, float], float]
Predict = Callable[[Tensor, Tensor], Tensor]

_PROMPT, _SEED, _STEPS = "two dogs", 7, 3
_STRENGTH = 3.0


@dataclass(frozen=True)
class Walk:
    """A few timesteps of a schedule, and the variances computed anew for them.

    Source: Nichol and Dhariwal (arXiv 2102.09672), sections 3.1, 3.2 and 4.
    """

    timesteps: tuple[int, ...]
    alpha_bar: NDArray[np.float64]

    @classmethod
    def of(cls, betas: NDArray[np.float64], steps: int) -> Walk:
        """Evenly spaced timesteps of the first to the last."""
        stride = (len(betas) - 1) / max(1, steps - 1)
        visited = tuple(round(i * stride) for i in range(steps))
        return cls(visited, np.cumprod(1 - betas, dtype=np.float64)[list(visited)])

    def start(self, x_t: Tensor, eps: Tensor, i: int) -> Tensor:
        """The clean picture that the predicted noise amounts to, bounded to −1 and 1."""
        signal = self.alpha_bar[i]
        return ((x_t - float(np.sqrt(1 - signal)) * eps) / float(np.sqrt(signal))).clamp(-1, 1)

    def posterior(self, x_0: Tensor, x_t: Tensor, share: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """Mean and log variance of one step back; `share` in −1 to 1 is where the model puts the latter."""
        signal, before = self.alpha_bar[i], self.alpha_bar[i - 1] if i else 1.0
        beta = 1 - signal / before
        mean = float(beta * np.sqrt(before) / (1 - signal)) * x_0
        mean = mean + float((1 - before) * np.sqrt(1 - beta) / (1 - signal)) * x_t
        smallest = self._smallest_variance(max(i, 1)) if len(self.timesteps) > 1 else 1e-20
        part = (share + 1) / 2
        return mean, part * float(np.log(beta)) + (1 - part) * float(np.log(smallest))

    def _smallest_variance(self, i: int) -> float:
        signal, before = self.alpha_bar[i], self.alpha_bar[i - 1]
        return float((1 - signal / before) * (1 - before) / (1 - signal))


@dataclass(frozen=True)
class Known:
    """What inpainting keeps: the picture [1, 3, H, W] without what is painted anew, and 1 where it is kept."""

    picture: Tensor
    kept: Tensor


class Reference:
    """Both stages in torch, sampled as OpenAI's notebooks do.

    Args:
        ids: gives ids and mask [1, L] of a text for one stage.
    """

    def __init__(self, model: Glide, ids: Callable[[Half, str], tuple[Tensor, Tensor]]) -> None:
        self.model, self.ids = model, ids

    def picture(self, known: Mapping[str, Known], guidance: float, gradient: Predict | None = None) -> Image.Image:
        """The picture of the fixed prompt and seed.

        Args:
            known: by stage; empty without inpainting.
            guidance: of the first stage; with 1 it is not guided by the empty prompt.
            gradient: of a classifier, times its strength.
        """
        torch.manual_seed(_SEED)
        base = self._base(known.get("base"), guidance, gradient)
        low = ((base + 1) * 127.5).round() / 127.5 - 1
        large = self._upsampler(low, known.get("upsampler"))[0].permute(1, 2, 0)
        return Image.fromarray(((large + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy())

    def _base(self, known: Known | None, guidance: float, gradient: Predict | None) -> Tensor:
        half, rows = self.model.base, 2 if guidance > 1 else 1
        texts = [half.text(*self.ids(half, text)) for text in (_PROMPT, "")[:rows]]
        given = [torch.cat(every) for every in zip(*texts)]

        def predict(x: Tensor, t: Tensor) -> Tensor:
            pictures = _pictures(known, rows)
            out = half.unet(x[:1].repeat(rows, 1, 1, 1), t.repeat(rows), given[0], *pictures, *given[1:])
            if rows == 1:
                return cast(Tensor, out)
            eps = out[1:, :3] + guidance * (out[:1, :3] - out[1:, :3])
            return torch.cat([eps, out[:1, 3:]], dim=1)

        walk, size = Walk.of(_cosine(), _STEPS), half.unet.sizes.image_size
        x = torch.randn(rows, 3, size, size)[:1]
        for i in reversed(range(_STEPS)):
            t = torch.tensor([walk.timesteps[i]])
            out = predict(x, t)
            x_0 = _keep(walk.start(x, out[:, :3], i), known)
            mean, log_variance = walk.posterior(x_0, x, out[:, 3:], i)
            noise = torch.randn(rows, 3, size, size)[:1]
            if gradient is not None:
                mean = mean + log_variance.exp() * gradient(x, t)
            x = mean + (log_variance / 2).exp() * noise if i else mean
        return x

    def _upsampler(self, low: Tensor, known: Known | None) -> Tensor:
        half = self.model.upsampler
        size = half.unet.sizes.image_size
        text = half.text(*self.ids(half, _PROMPT))
        enlarged = F.interpolate(low, (size, size), mode="bilinear", align_corners=False)
        walk, x = Walk.of(np.linspace(1e-4, 0.02, 1000), _STEPS), torch.randn(1, 3, size, size) * 0.997
        for i in reversed(range(_STEPS)):
            t = torch.tensor([walk.timesteps[i]])
            out = half.unet(x, t, text[0], *_pictures(known, 1), enlarged, *text[1:])
            x_0 = _keep(walk.start(x, out[:, :3], i), known)
            noise = torch.randn(1, 3, size, size)
            if known is not None:
                mean, log_variance = walk.posterior(x_0, x, out[:, 3:], i)
                x = mean + (log_variance / 2).exp() * noise if i else mean
                continue
            signal, before = walk.alpha_bar[i], walk.alpha_bar[i - 1] if i else 1.0
            eps = (x - float(np.sqrt(signal)) * x_0) / float(np.sqrt(1 - signal))
            x = float(np.sqrt(before)) * x_0 + float(np.sqrt(1 - before)) * eps
        return x


def reference_checks(model: Glide, tolerance: Tolerance) -> Sequence[Check]:
    """One picture of three steps a stage, and one more by the noised CLIP's gradient where there is one."""

    def pictures(folder: Path) -> Iterator[Measurement]:
        bundle, limit = Bundle.open(folder), tolerance("psnr", picture_checks.LEAST)
        reference = Reference(model, _reader(bundle))
        inpaints = model.base.unet.sizes.inpaint
        task = "inpaint" if inpaints else "generate"
        options: dict[str, Any] = {"seed": _SEED, "steps": _STEPS}
        given = _photograph(model) if inpaints else ()
        with torch.no_grad():
            expected = reference.picture(_known(model) if inpaints else {}, _STRENGTH)
            found = load(task, folder)(*given, _PROMPT, guidance=_STRENGTH, **options)
            yield _measurement(f"picture.{task}", found.pixels, expected, limit)
            if model.clip:
                expected = reference.picture({}, 1.0, _gradient(model, bundle))
                options |= {"guidance": 1.0, "gradient_guidance": _STRENGTH}
                found = load(task, folder)(_PROMPT, **options)
                yield _measurement("picture.clip-guided", found.pixels, expected, limit)

    return (pictures,)


def _reader(bundle: Bundle) -> Callable[[Half, str], tuple[Tensor, Tensor]]:
    spec = bundle.manifest.diffusion
    if spec is None:
        raise ValueError("the staged bundle makes no pictures")
    codec = TextCodec.open(bundle, spec.prompts[0].text)

    def read(half: Half, text: str) -> tuple[Tensor, Tensor]:
        row, context = codec.prompt_row(text), half.unet.sizes.context
        return torch.from_numpy(codec.pad([row])), (torch.arange(context) < len(row)).long()[None]

    return read


def _gradient(model: Glide, bundle: Bundle) -> Predict:
    spec = bundle.manifest.diffusion
    if model.clip is None or spec is None:
        raise ValueError("there is no noised CLIP to be guided by")
    codec = TextCodec.open(bundle, spec.prompts[-1].text)
    text = model.clip.text(torch.from_numpy(codec.pad([codec.prompt_row(_PROMPT)])))
    module = ClipGradient(model.clip.image, model.clip.sizes.scale)
    return lambda sample, timestep: _STRENGTH * module(sample, timestep, text)


def _photograph(model: Glide) -> tuple[Image.Image, Image.Image]:
    size = model.upsampler.unet.sizes.image_size
    return picture_checks.photograph(size, size), picture_checks.mask(size, size)


def _known(model: Glide) -> dict[str, Known]:
    """The photograph at each stage's size; the mask is made small for the first and enlarged from there."""
    photograph, mask = _photograph(model)
    small = model.base.unet.sizes.image_size
    painted = F.interpolate(torch.from_numpy(np.asarray(mask, np.float32) / 255)[None, None], (small, small))
    found = {}
    for name, half in (("base", model.base), ("upsampler", model.upsampler)):
        size = half.unet.sizes.image_size
        pixels = np.asarray(photograph.resize((size, size), Image.Resampling.BICUBIC), np.float32) / 127.5 - 1
        kept = (F.interpolate(painted, (size, size)) < 0.5).float()
        found[name] = Known(torch.from_numpy(pixels).permute(2, 0, 1)[None] * kept, kept)
    return found


def _pictures(known: Known | None, rows: int) -> tuple[Tensor, ...]:
    return () if known is None else (known.picture.repeat(rows, 1, 1, 1), known.kept.repeat(rows, 1, 1, 1))


def _keep(x_0: Tensor, known: Known | None) -> Tensor:
    return x_0 if known is None else x_0 * (1 - known.kept) + known.picture * known.kept


def _cosine() -> NDArray[np.float64]:
    """Source: Nichol and Dhariwal, equation 17, with every variance below 0.999."""
    level = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    betas: NDArray[np.float64] = np.minimum(1 - level[1:] / level[:-1], 0.999)
    return betas


def _measurement(stage: str, found: NDArray[np.uint8], expected: Image.Image, limit: float) -> Measurement:
    value = picture_checks.psnr(found, np.asarray(expected))
    return Measurement(stage, "PSNR in dB", value, limit, "plain torch", torch.__version__, "", "higher")

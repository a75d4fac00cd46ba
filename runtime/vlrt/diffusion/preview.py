"""Small pictures of unfinished samples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlrt.diffusion.photographs import to_picture
from vlrt.diffusion_sections import StageSpec


def preview(stage: StageSpec, denoised: NDArray[np.float32]) -> Image.Image | None:
    """A picture of the sample that a step predicts, or `None` where the stage gives no way to.

    Args:
        denoised: predicted clean sample [C, H, W].
    """
    if stage.preview:
        matrix = np.asarray(stage.preview, dtype=np.float32)
        return to_picture(np.einsum("chw,cr->rhw", denoised[: len(matrix)], matrix)) if _spatial(denoised) else None
    if _spatial(denoised) and denoised.shape[0] == 3:
        return to_picture(denoised)
    return None


def _spatial(sample: NDArray[np.float32]) -> bool:
    return sample.ndim == 3

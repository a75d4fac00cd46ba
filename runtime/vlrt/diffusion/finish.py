"""From a stage's result to what later stages, or people, see of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vlrt.diffusion.tiles import Tiling
from vlrt.diffusion_sections import StageSpec
from vlrt.engines import Array, Sessions
from vlrt.errors import BundleError, EngineError


def finish(
    stage: StageSpec, sample: NDArray[np.float32], known: dict[str, Array], sessions: Sessions, tiled: bool
) -> dict[str, Array]:
    """Runs the graphs that a stage ends with.

    Args:
        sample: [1, …].
        known: further arrays the graphs may take, by name.
        tiled: whether the finished picture is made in tiles, where it is larger than one.

    Returns:
        Everything that is known now, under the graphs' names and the stage's `output`.

    Raises:
        EngineError: the result is not finite.
    """
    if not stage.finish:
        return {stage.output: sample}
    latents = sample / np.float32(stage.latent_scale) + np.float32(stage.latent_shift)
    if tiled and stage.tile and max(latents.shape[2:]) > stage.tile:
        tiling = Tiling(stage.tile, stage.tile * stage.factor, stage.tile_overlap)
        found: dict[str, Array] = {
            stage.output: tiling.run(lambda tile: _run(stage, tile, known, sessions)[stage.output], latents)
        }
    else:
        found = _run(stage, latents, known, sessions)
    if not np.isfinite(found[stage.output]).all():
        what = f"the graphs that finish the stage `{stage.name}` give values that are not finite"
        raise EngineError(what, "try another precision or device")
    return found


def _run(stage: StageSpec, latents: Array, known: dict[str, Array], sessions: Sessions) -> dict[str, Array]:
    found = sessions.run_chain(stage.finish, {**known, stage.finish_input: latents})
    if stage.output not in found:
        what = f"the stage `{stage.name}` ends without its output `{stage.output}`"
        raise BundleError(what, "export the bundle again")
    return found

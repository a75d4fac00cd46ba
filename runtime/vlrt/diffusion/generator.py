"""Random numbers as torch's CPU generator draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlrt import _C
from vlrt.errors import UsageError

LARGEST_SEED = 2**64 - 1


class Generator:
    """A stream of random numbers: ``torch.Generator().manual_seed(seed)`` on the CPU (torch 2.13).

    Every draw continues where the one before ended, so draws must come in the reference's order.

    Args:
        seed: 0 to 2⁶⁴ − 1; as in torch, only its low 32 bits count.

    Raises:
        UsageError: the seed is outside.
    """

    def __init__(self, seed: int) -> None:
        if not 0 <= seed <= LARGEST_SEED:
            raise UsageError(f"the seed {seed} does not fit 64 bits", f"0 to {LARGEST_SEED}")
        self.seed = seed
        self.native = _C.TorchGenerator(seed)

    def randn(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """Normals of that shape, float32, as one call of ``torch.randn(shape, generator=…)``."""
        return self.native.randn(math.prod(shape)).reshape(tuple(shape))


def randn(generators: Sequence[Generator], shape: Sequence[int]) -> NDArray[np.float32]:
    """Normals for a batch, shape [N, …], float32: from one generator at once, or row by row from N of them.

    Source: diffusers 0.39, `randn_tensor`.

    Raises:
        UsageError: neither one generator nor N.
    """
    if len(generators) == 1:
        return generators[0].randn(shape)
    if len(generators) != shape[0]:
        raise UsageError(f"{len(generators)} generators for {shape[0]} images, expected one or one for each")
    return np.concatenate([generator.randn((1, *shape[1:])) for generator in generators])

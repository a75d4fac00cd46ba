"""Every option of sampling beside the schedule, validated in one place."""

from __future__ import annotations

from dataclasses import dataclass

from vlrt.errors import UsageError


@dataclass(frozen=True)
class SampleOptions:
    """How predictions are guided and noise is drawn.

    Args:
        guidance: classifier-free guidance, unconditional + guidance · (conditional − unconditional) (Ho and Salimans
            2022); up to 1 the conditional rows alone are evaluated.
        guidance_rescale: 0 to 1: share of a guided prediction whose deviation is brought back to the conditional
            one's (Lin et al. 2023, equations 15 and 16).
        guidance_interval: shares of the evaluations between which guidance is used (Kynkäänniemi et al. 2024).
        guided_channels: the first channels that guidance applies to, the others are the conditional ones; 0: all
            channels of the sample. Learned variances are always the conditional ones.
        two_passes: unconditional and conditional rows are evaluated one after the other, with half the activations.
        paired_noise: every draw is followed by one of the same size that nothing uses, as by references that carry
            both rows of a guided picture.
        always_draw: noise is also drawn, and not used, in steps that add none.

    Raises:
        UsageError: a value out of its range.
    """

    guidance: float = 1.0
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guided_channels: int = 0
    two_passes: bool = False
    paired_noise: bool = False
    always_draw: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.guidance < float("inf"):
            raise UsageError(f"`guidance` is {self.guidance}, expected a number not below 0", "1 switches it off")
        if not 0 <= self.guidance_rescale <= 1:
            raise UsageError(f"`guidance_rescale` is {self.guidance_rescale}, expected 0 to 1")
        start, stop = self.guidance_interval
        if not 0 <= start <= stop <= 1:
            raise UsageError(f"guidance from {start} to {stop} of the steps cannot be", "for example 0.2 to 0.8")
        if self.guided_channels < 0:
            raise UsageError(f"`guided_channels` is {self.guided_channels}, expected 0 or more")

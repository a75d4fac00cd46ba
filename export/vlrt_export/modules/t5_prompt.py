"""T5's encoder as diffusion models read it: a state for every token of a prompt."""

from __future__ import annotations

from torch import Tensor

from vlrt_export.modules.attention_kv import padding_mask
from vlrt_export.modules.t5 import T5Encoder, T5Sizes


class T5Prompt(T5Encoder):
    """Ids and mask [N, L], both int64, to states [N, L, C].

    Source: Raffel et al. (arXiv 1910.10683); reproduces transformers' ``T5EncoderModel``.
    """

    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__(sizes, pad_id=0)

    def forward(self, input_ids: Tensor, prompt_mask: Tensor) -> Tensor:  # type: ignore[override] # no image in front
        x = self.words(input_ids)
        bias = self._bias(x.shape[1]) + padding_mask(prompt_mask > 0)[:, None, None, :]
        for layer in self.layers:
            x = layer(x, bias)
        states: Tensor = self.norm(x)
        return states

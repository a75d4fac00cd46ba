"""Diffusers' UNets as denoisers of the loop: what is constant over the steps comes in from outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlrt.errors import VlrtError
from vlrt_export.modules.diffusion_blocks import PromptMemory, SharedDense, cross_attentions, portable

CLASS, GUIDANCE, BIAS, EMBEDDING = "class_labels", "guidance_embedding", "prompt_bias", "prompt_embedding"
"""Names of conditions with a meaning of their own; every other one is joined to the sample's channels."""

_SERVED: dict[str, tuple[Any, ...]] = {
    "addition_embed_type": (None, "text"),
    "encoder_hid_dim_type": (None, "text_proj"),
    "attention_type": (None, "default"),
    "time_embedding_type": (None, "positional", "learned"),
}


def check_unet(unet: Any) -> None:
    """Refuses a UNet with parts that `Denoiser` does not reproduce; the message names the setting.

    Raises:
        VlrtError: an unknown kind of condition.
    """
    for name, served in _SERVED.items():
        value = unet.config.get(name)
        if value not in served:
            raise VlrtError(f"the UNet has `{name}` {value!r}, known are {', '.join(map(str, served))}")


class PromptProjection(nn.Module):
    """What a UNet makes of a prompt once: keys and values of every cross-attention layer, and its time-like embedding.

    Args:
        unet: diffusers' `UNet2DConditionModel`; its weights are shared.
    """

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.hidden = unet.encoder_hid_proj
        self.embedding = unet.add_embedding if unet.config.get("addition_embed_type") == "text" else None
        self.norms, self.keys, self.values = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for attn in cross_attentions(unet):
            added = attn.added_kv_proj_dim is not None
            key, value = (attn.add_k_proj, attn.add_v_proj) if added else (attn.to_k, attn.to_v)
            self.norms.append(_PromptNorm(attn.norm_cross))
            self.keys.append(SharedDense(key))
            self.values.append(SharedDense(value))

    @property
    def layers(self) -> int:
        """Number of cross-attention layers."""
        return len(self.keys)

    def forward(self, prompt_states: Tensor) -> tuple[Tensor, ...]:
        """Map [N, L, D] to the embedding [N, T], where the UNet has one, and keys and values [N, L, H·D] by layer."""
        found = [] if self.embedding is None else [self.embedding(prompt_states)]
        states = prompt_states if self.hidden is None else self.hidden(prompt_states)
        normed = [norm(states) for norm in self.norms]
        found += [key(x) for key, x in zip(self.keys, normed)]
        found += [value(x) for value, x in zip(self.values, normed)]
        return tuple(found)


class _PromptNorm(nn.Module):
    """A layer norm over the width, a group norm over it, or none."""

    def __init__(self, norm: nn.Module | None) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is None:
            return x
        if isinstance(self.norm, nn.GroupNorm):
            return cast(Tensor, self.norm(x.transpose(1, 2)).transpose(1, 2))
        return cast(Tensor, self.norm(x))


class Denoiser(nn.Module):
    """A UNet over sample [R, C, H, W] and timestep [R].

    Args:
        unet: diffusers' `UNet2DConditionModel` or `UNet2DModel`; its weights are shared.
        conditions: names of further inputs in the order of `forward`'s, without keys and values: `CLASS` [R] or
            [R, D], `GUIDANCE` [R, D], `EMBEDDING` [R, T], `BIAS` [R, L]; every other one is [R, c, H, W] and joined
            to the sample's channels in the order given.
        layers: number of cross-attention layers.
        predicted: channels of the prediction that are kept; 0: all.

    Raises:
        VlrtError: the UNet has parts that are not known.

    Source: reproduces the forward passes of diffusers' two classes for heights and widths that halve evenly.
    """

    def __init__(self, unet: Any, conditions: Sequence[str] = (), layers: int = 0, predicted: int = 0) -> None:
        super().__init__()
        check_unet(unet)
        self.unet: Any = portable(unet)
        self.conditions, self.layers, self.predicted = tuple(conditions), layers, predicted or None

    def forward(self, sample: Tensor, timestep: Tensor, *conditions: Tensor) -> Tensor:
        """The prediction [R, C or 2C, H, W]; `conditions` are those named, then keys, then values of every layer."""
        unet, plain = self.unet, len(self.conditions)
        given = dict(zip(self.conditions, conditions))
        keys, values = conditions[plain : plain + self.layers], conditions[plain + self.layers :]
        memory = PromptMemory(keys, values, given.pop(BIAS, None)) if self.layers else None
        emb = self._time(timestep, given)
        sample = torch.cat([sample, *given.values()], 1) if given else sample
        sample = unet.conv_in(2 * sample - 1 if unet.config.center_input_sample else sample)
        prediction = self._body(sample, emb, memory)
        return prediction if self.predicted is None else prediction[:, : self.predicted]

    def _time(self, timestep: Tensor, given: dict[str, Tensor]) -> Tensor:
        """The embedding of time, class and prompt; takes what it reads out of `given`."""
        unet = self.unet
        guidance = (given.pop(GUIDANCE),) if GUIDANCE in given else ()
        emb = unet.time_embedding(unet.time_proj(timestep), *guidance)
        if unet.class_embedding is not None:
            label = given.pop(CLASS)
            if unet.config.class_embed_type == "timestep":
                label = unet.time_proj(label)
            joined = unet.class_embedding(label)
            emb = torch.cat([emb, joined], -1) if unet.config.get("class_embeddings_concat") else emb + joined
        emb = emb + given.pop(EMBEDDING) if EMBEDDING in given else emb
        act = getattr(unet, "time_embed_act", None)
        return cast(Tensor, emb if act is None else act(emb))

    def _body(self, sample: Tensor, emb: Tensor, memory: PromptMemory | None) -> Tensor:
        unet = self.unet
        skips = [sample]
        for block in unet.down_blocks:
            sample, more = block(sample, emb, **_prompt(block, memory))
            skips += more
        if unet.mid_block is not None:
            sample = unet.mid_block(sample, emb, **_prompt(unet.mid_block, memory))
        for block in unet.up_blocks:
            count = len(block.resnets)
            skips, taken = skips[:-count], tuple(skips[-count:])
            sample = block(sample, taken, emb, **_prompt(block, memory))
        if unet.conv_norm_out is not None:
            sample = unet.conv_act(unet.conv_norm_out(sample))
        return cast(Tensor, unet.conv_out(sample))


def _prompt(block: Any, memory: PromptMemory | None) -> dict[str, PromptMemory]:
    reads = memory is not None and getattr(block, "has_cross_attention", False)
    return {"encoder_hidden_states": memory} if reads and memory is not None else {}

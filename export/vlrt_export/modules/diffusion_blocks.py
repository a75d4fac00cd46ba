"""Blocks of diffusers' UNets and autoencoders in the forms that engines run fast, on the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlrt.errors import VlrtError

_ATTENTION = "com.microsoft::MultiHeadAttention"


@dataclass(frozen=True)
class PromptMemory:
    """What the layers of a denoiser read of a prompt, constant over the steps.

    Args:
        keys, values: [R, L, H·D] per cross-attention layer.
        bias: added to the scores of the prompt's places, [R, L]; `None` where all are read.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    bias: Tensor | None = None


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int, scale: float, bias: Tensor | None) -> Tensor:
    """Attention over all places, [R, S, H·D] queries and [R, L, H·D] keys and values to [R, S, H·D].

    In a graph this is ONNX Runtime's `MultiHeadAttention`: at 64² places and 8 heads its blocks need neither the 1 GB
    that a matrix of all scores takes nor the time to write it.

    Args:
        bias: added to the scores, [R, 1, 1, L].

    Source: Vaswani et al. (arXiv 1706.03762), section 3.2.
    """
    if torch.onnx.is_in_onnx_export():
        more = [] if bias is None else [None, None, bias.expand(-1, -1, query.shape[1], -1)]
        attributes: dict[str, Any] = {"num_heads": heads, "scale": scale}
        return torch.onnx.ops.symbolic(
            _ATTENTION, [query, key, value, *more], attributes, dtype=query.dtype, shape=query.shape, version=1
        )
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale).transpose(1, 2).flatten(2)


class Attend:
    """An attention processor for diffusers' `Attention`: self-attention, or attention to a `PromptMemory`.

    Args:
        layer: number of the cross-attention layer; `None` for self-attention.

    Source: reproduces diffusers' `AttnProcessor2_0`, and `AttnAddedKVProcessor2_0` where prompt and picture share a
    layer's keys.
    """

    def __init__(self, layer: int | None = None) -> None:
        self.layer = layer

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: PromptMemory | None = None,
        attention_mask: None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Diffusers calls it so; `temb` is for norms that `portable` refuses, masks are the memory's bias."""
        x = hidden_states.flatten(2).transpose(1, 2) if hidden_states.ndim == 4 else hidden_states
        if attn.group_norm is not None:
            x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
        key, value, bias = self._keys_values(attn, x, encoder_hidden_states)
        mixed = attn.to_out[0](attention(attn.to_q(x), key, value, attn.heads, attn.scale, bias))
        if hidden_states.ndim == 4:
            mixed = mixed.transpose(1, 2).reshape(hidden_states.shape)
        if attn.residual_connection or attn.added_kv_proj_dim is not None:
            mixed = mixed + hidden_states
        factor = attn.rescale_output_factor
        return cast(Tensor, mixed if factor == 1 else mixed / factor)

    def _keys_values(self, attn: Any, x: Tensor, memory: PromptMemory | None) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.layer is None:
            return attn.to_k(x), attn.to_v(x), None
        if memory is None:
            raise ValueError("a layer of cross-attention was given no prompt")
        key, value, bias = memory.keys[self.layer], memory.values[self.layer], memory.bias
        if attn.added_kv_proj_dim is not None and not attn.only_cross_attention:
            bias = None if bias is None else F.pad(bias, (0, x.shape[1]))
            key, value = torch.cat([key, attn.to_k(x)], 1), torch.cat([value, attn.to_v(x)], 1)
        return key, value, None if bias is None else bias[:, None, None]


class GroupedLayerNorm(nn.Module):
    """A group norm over [N, C, …] as a layer norm of each group: the faster kernel in ONNX Runtime."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(x.shape[0], self.groups, -1)
        even = F.layer_norm(rows, rows.shape[-1:], eps=self.eps).reshape(x.shape)
        shape = (-1, *(1 for _ in x.shape[2:]))
        return even * self.weight.view(shape) + self.bias.view(shape)


class SharedDense(nn.Module):
    """A linear layer's x · W + b on a transposed view of its weights: no transposition in the graph."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().t(), requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        product = x @ self.weight
        return product if self.bias is None else product + self.bias


class Upsample(nn.Module):
    """Nearest-neighbour doubling, and the convolution behind it where there is one."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        if block.use_conv_transpose or block.norm is not None or not block.interpolate:
            raise VlrtError("an upsampling layer with norm or transposed convolution is not known", "report the model")
        self.conv = (block.conv if block.name == "conv" else block.Conv2d_0) if block.use_conv else None

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x if self.conv is None else cast(Tensor, self.conv(x))


class Residual(nn.Module):
    """A residual block under a time embedding.

    Source: reproduces diffusers' `ResnetBlock2D`; without its conditions on the batch's size, which no trace with an
    open batch can decide.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, temb: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        block = self.block
        h = block.nonlinearity(block.norm1(x))
        resample = block.upsample if block.upsample is not None else block.downsample
        if resample is not None:
            x, h = resample(x), resample(h)
        h = block.conv1(h)
        scale = shift = None
        if block.time_emb_proj is not None and temb is not None:
            shift = block.time_emb_proj(temb if block.skip_time_act else block.nonlinearity(temb))[:, :, None, None]
        if block.time_embedding_norm == "scale_shift":
            if shift is None:
                raise ValueError("a block that is scaled by time was given no time")
            scale, shift = shift.chunk(2, dim=1)
            h = block.norm2(h) * (1 + scale) + shift
        else:
            h = block.norm2(h if shift is None else h + shift)
        h = block.conv2(block.nonlinearity(h))
        x = x if block.conv_shortcut is None else block.conv_shortcut(x)
        factor = block.output_scale_factor
        return cast(Tensor, x + h if factor == 1 else (x + h) / factor)


def portable(module: nn.Module) -> nn.Module:
    """A copy of a diffusers model, in eval mode on the same weights, whose blocks are those of this file.

    Its attention layers are numbered: `Attend.layer` counts those that read the prompt, in the order of
    `cross_attentions`.

    Raises:
        VlrtError: a block that is not known here.
    """
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    made = copy.deepcopy(module, shared).eval().requires_grad_(False)
    for layer, attn in enumerate(cross_attentions(made)):
        attn.set_processor(Attend(layer))
    for attn in _instances(made, "Attention"):
        if attn.spatial_norm is not None or attn.norm_q is not None:
            raise VlrtError("an attention layer with a norm of its queries is not known", "report the model")
        if not isinstance(attn.processor, Attend):
            attn.set_processor(Attend())
    _replace(made)
    return made


def cross_attentions(module: nn.Module) -> list[Any]:
    """The attention layers that read the prompt, in the model's order."""
    found = _instances(module, "Attention")
    return [attn for attn in found if attn.is_cross_attention or attn.added_kv_proj_dim is not None]


def _instances(module: nn.Module, kind: str) -> list[Any]:
    return [child for child in module.modules() if type(child).__name__ == kind]


_FORMS: dict[str, Callable[[Any], nn.Module]] = {
    "GroupNorm": GroupedLayerNorm,
    "Linear": SharedDense,
    "Upsample2D": Upsample,
    "ResnetBlock2D": Residual,
}
_UNKNOWN = ("FirUpsample2D", "FirDownsample2D", "KUpsample2D", "KDownsample2D", "ResnetBlockCondNorm2D", "SpatialNorm")


def _replace(module: nn.Module) -> None:
    """Replaces children by their forms, the innermost first."""
    for name, child in module.named_children():
        _replace(child)
        kind = type(child).__name__
        if kind in _UNKNOWN:
            raise VlrtError(f"a `{kind}` block is not known", "report this with the model")
        if kind in _FORMS:
            setattr(module, name, _FORMS[kind](child))

"""From a library's state dict to our own modules: which tensors make up a parameter, and what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from vlrt.errors import VlrtError

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Part:
    """One parameter of ours, from one or several of the checkpoint's tensors.

    Args:
        names: tensors in order, of equal shape where there are several.
        transpose: swap the two axes of each first (`nn.Linear`'s [out, in] to `Dense`'s [in, out], joined on out).
        added: tensor [N, C] whose first row is added to every row, e.g. the embedding of token type 0.
        axis: along which several are joined, before they are transposed.
        optional: zeros where the checkpoint has none of them, e.g. the bias of layers that may have none.
    """

    names: tuple[str, ...]
    transpose: bool = False
    added: str = ""
    axis: int = 0
    optional: bool = False

    @property
    def every_name(self) -> tuple[str, ...]:
        return (*self.names, self.added) if self.added else self.names


Layout = dict[str, Part]


def linear(target: str, *sources: str, bias: bool = True, optional_bias: bool = False) -> Layout:
    """A `Dense` from the weights [out, in] and biases of `nn.Linear` layers side by side."""
    found = {f"{target}.weight": Part(tuple(f"{source}.weight" for source in sources), transpose=True)}
    if bias:
        found[f"{target}.bias"] = Part(tuple(f"{source}.bias" for source in sources), optional=optional_bias)
    return found


def same(target: str, source: str, *, bias: bool = True) -> Layout:
    """Weight (and bias) as they are: layer norms, convolutions, embeddings, and `Dense` layers from `Conv1D`."""
    kinds = ("weight", "bias") if bias else ("weight",)
    return {f"{target}.{kind}": Part((f"{source}.{kind}",)) for kind in kinds}


def build(make: Callable[[], Module], layout: Layout, tensors: Mapping[str, Tensor], where: str) -> Module:
    """Builds a module without initial weights and gives it those of a checkpoint, widened to fp32, in eval mode.

    Args:
        make: makes the module.
        layout: by our parameters' names.
        tensors: read one by one, so that the checkpoint is never in memory as a whole.
        where: the checkpoint's name for messages.

    Raises:
        VlrtError: a tensor is missing or of another shape or dtype; the message names it.
    """
    with torch.device("meta"):
        module = make()
    wanted = module.state_dict()
    unknown = sorted(set(wanted) ^ set(layout))
    if unknown:
        raise ValueError(f"the layout and {type(module).__name__} differ in {unknown[:4]}")
    state = {name: _read(part, wanted[name].shape, tensors, where) for name, part in layout.items()}
    module.load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False)


def check_surplus(tensors: Mapping[str, Tensor], known: set[str], ignored: str, where: str) -> None:
    """Raises `VlrtError` for tensors that no layout reads; names that the pattern `ignored` finds are left alone."""
    surplus = sorted(name for name in set(tensors) - known if not re.search(ignored, name))
    if surplus:
        more = f" (and {len(surplus) - 1} more)" if len(surplus) > 1 else ""
        what = f"`{where}` has the unexpected tensor `{surplus[0]}` {list(tensors[surplus[0]].shape)}{more}"
        raise VlrtError(what, "is this the checkpoint of another model?")


def names_of(*layouts: Layout) -> set[str]:
    """Every tensor of a checkpoint that layouts read."""
    return {name for layout in layouts for part in layout.values() for name in part.every_name}


def _read(part: Part, shape: torch.Size, tensors: Mapping[str, Tensor], where: str) -> nn.Parameter:
    if part.optional and not any(name in tensors for name in part.names):
        return nn.Parameter(torch.zeros(shape), requires_grad=False)
    expected = list(shape)[::-1] if part.transpose else list(shape)
    if len(part.names) > 1:
        expected[part.axis] //= len(part.names)
    pieces = [_tensor(name, expected, tensors, where) for name in part.names]
    value = torch.cat(pieces, part.axis) if len(pieces) > 1 else pieces[0]
    if part.transpose and value.ndim == 2:
        value = value.t()
    if part.added:
        value = value + _tensor(part.added, None, tensors, where)[0]
    return nn.Parameter(value.contiguous(), requires_grad=False)


def _tensor(name: str, expected: list[int] | None, tensors: Mapping[str, Tensor], where: str) -> Tensor:
    if name not in tensors:
        raise VlrtError(f"`{where}` lacks the tensor `{name}`", "is a shard missing, or is it another model?")
    tensor = tensors[name]
    if not tensor.is_floating_point():
        raise VlrtError(f"`{name}` of `{where}` has dtype `{tensor.dtype}`, expected floating point")
    if expected is not None and list(tensor.shape) != expected:
        what = f"`{name}` of `{where}` has shape {list(tensor.shape)}, expected {expected}"
        raise VlrtError(what, "check the sizes in `config.json`")
    return tensor.to(torch.float32)


def invert(module: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """A module's weights under the checkpoint's names, for building the reference beside random weights."""
    state = module.state_dict()
    found: dict[str, Tensor] = {}
    for name, part in layout.items():
        value = state[name].t() if part.transpose and state[name].ndim == 2 else state[name]
        found |= dict(zip(part.names, value.chunk(len(part.names), part.axis)))
    return found

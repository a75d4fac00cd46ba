"""Learned prompts in CoOp's form, converted to a file that the runtime reads."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlrt.errors import UsageError, VlrtError
from vlrt.prompts import LearnedPrompts, check_labels, read_lines
from vlrt.whole_file import write_whole
from vlrt_export.checkpoints import Checkpoint, open_checkpoint

_NAMES = ("ctx", "prompt_learner.ctx")


def convert_prompts(
    source: str, target: Path, position: str = "end", labels_file: Path | None = None, force: bool = False
) -> LearnedPrompts:
    """Writes the context vectors of a CoOp checkpoint as an `.npz` file of the runtime; nothing is unpickled.

    Args:
        source: ``prompt_learner/model.pth.tar-*`` or its folder.
        target: file to write, ending in ``.npz``.
        position: where the label stood in training (``CLASS_TOKEN_POSITION``); the checkpoint does not say.
        labels_file: the class names in training order, to be kept with the vectors.
        force: replace an existing file.

    Returns:
        What was written.

    Raises:
        VlrtError: the checkpoint holds no context vectors, the labels do not fit, or the target cannot be written.

    Source: CoOp (Zhou et al., arXiv 2109.01134); the layout of KaiyangZhou/CoOp.
    """
    if target.suffix != ".npz":
        raise UsageError(f"`{target.name}` does not end in .npz", "-o ctx.npz")
    if target.exists() and not force:
        raise VlrtError(f"`{target}` already exists", "use --force to replace it, or another file with -o")
    checkpoint = open_checkpoint(source)
    labels = check_labels(read_lines(labels_file)) if labels_file is not None else ()
    vectors = _context(checkpoint).to(torch.float32).numpy()
    prompts = LearnedPrompts(np.ascontiguousarray(vectors), position, labels)  # type: ignore[arg-type]
    _write(target, prompts, f"{checkpoint.origin} {checkpoint.revision}")
    return prompts


def _context(checkpoint: Checkpoint) -> Tensor:
    if any("meta_net" in name for name in checkpoint.tensors):
        what = f"the prompts of `{checkpoint.origin}` depend on the photograph (CoCoOp)"
        raise VlrtError(what, "only CoOp's, which are the same for all, can be encoded ahead")
    for name in _NAMES:
        if name in checkpoint.tensors:
            return checkpoint.tensors[name]
    shown = ", ".join(f"`{name}`" for name in list(checkpoint.tensors)[:4])
    raise VlrtError(f"`{checkpoint.origin}` holds {shown}, expected `ctx`", "give CoOp's prompt_learner checkpoint")


def _write(target: Path, prompts: LearnedPrompts, source: str) -> None:
    content = io.BytesIO()
    words = {"position": prompts.position, "labels": "\n".join(prompts.labels), "source": source}
    arrays: dict[str, Any] = {name: np.asarray(word) for name, word in words.items()}
    np.savez(content, context=prompts.vectors, **arrays)
    try:
        write_whole(target, content.getvalue())
    except OSError as error:
        raise VlrtError(f"`{target}` cannot be written: {error.strerror}", "choose another file with -o") from None

"""Opening a codec of pictures whatever it is: for its own family, and for decoders that write its codes."""

from __future__ import annotations

from pathlib import Path

from vlrt.errors import VlrtError
from vlrt_export.checkpoints import Checkpoint, open_checkpoint
from vlrt_export.discrete_vae_checkpoint import is_discrete_vae, load_discrete_vae
from vlrt_export.dvae_checkpoint import is_dvae, load_dvae, open_halves
from vlrt_export.image_codec import ImageCodec
from vlrt_export.vq_vae_checkpoint import is_vq_vae, load_vq_vae
from vlrt_export.vqgan_checkpoint import is_vqgan, load_vqgan


def open_image_codec(source: str | Path, side: int | None = None) -> ImageCodec:
    """Opens a VQ-VAE, a discrete VAE or a VQGAN by the names of its tensors.

    Args:
        source: a file, a folder or a hub id; see `vlrt_export.checkpoints.open_checkpoint`.
        side: pixels of the pictures that it was trained on, where neither layout nor configuration says it.

    Raises:
        VlrtError: no such checkpoint, or none of the three.
    """
    path = Path(source).expanduser()
    return read_image_codec((open_halves(path) if path.is_dir() else None) or open_checkpoint(source), side)


def read_image_codec(checkpoint: Checkpoint, side: int | None = None) -> ImageCodec:
    """As `open_image_codec`, of a checkpoint that is open, or of the part of one that is a codec."""
    if is_vq_vae(checkpoint.tensors):
        return load_vq_vae(checkpoint)
    if is_dvae(checkpoint.tensors):
        return load_dvae(checkpoint)
    if is_discrete_vae(checkpoint.tensors):
        return load_discrete_vae(checkpoint, side)
    if is_vqgan(checkpoint):
        return load_vqgan(checkpoint, side)
    shown = ", ".join(f"`{name}`" for name in list(checkpoint.tensors)[:3])
    what = f"`{checkpoint.origin}` is no codec of pictures that we know; its tensors are {shown}, …"
    raise VlrtError(what, "VQ-VAE, discrete VAE (OpenAI's, DALLE-pytorch's) and VQGAN are known")


def need_kind(codec: ImageCodec, kind: str, source: str) -> ImageCodec:
    """The codec, if it is of that kind.

    Raises:
        VlrtError: it is another.
    """
    if codec.kind != kind:
        raise VlrtError(
            f"`{source}` is a {codec.kind}, expected a {kind}", f"vlrt export {codec.kind} --source {source}"
        )
    return codec

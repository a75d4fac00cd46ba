"""A dual encoder: photographs and sentences as vectors of one space (Radford et al., arXiv 2103.00020)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlrt import image as pictures
from vlrt.bundle import Bundle
from vlrt.engines import Array, EngineOptions, Sessions
from vlrt.errors import BundleError
from vlrt.image import ImageLike
from vlrt.manifest import EmbedSpec, ImageSpec
from vlrt.text import TextCodec

Vectors = NDArray[np.float32]


class DualEncoder:
    """Embeds images and texts of one bundle; all vectors have length one, so a dot product is the cosine.

    Args:
        bundle: one whose manifest has an embed section.
        options: device and threads.

    Raises:
        BundleError: the bundle embeds nothing.
    """

    def __init__(self, bundle: Bundle, options: EngineOptions | None = None, sessions: Sessions | None = None) -> None:
        if bundle.manifest.embed is None or bundle.manifest.image is None:
            raise BundleError(f"the bundle `{bundle.name}` embeds nothing", "`vlrt models` lists those that do")
        self.bundle = bundle
        self.spec: EmbedSpec = bundle.manifest.embed
        self.image_spec: ImageSpec = bundle.manifest.image
        self.sessions = sessions or Sessions(bundle, options)
        self._codec: TextCodec | None = None

    @property
    def codec(self) -> TextCodec:
        """The tokenizer, loaded when first needed."""
        if self._codec is None:
            self._codec = TextCodec.open(self.bundle)
        return self._codec

    def images(self, sources: Sequence[ImageLike]) -> Vectors:
        """Embeddings of photographs: float32 [N, D].

        Raises:
            ImageError: one of them cannot be read.
        """
        if not sources:
            return np.zeros((0, self.spec.dimension), np.float32)
        loaded: list[Image.Image] = [pictures.load(source) for source in sources]
        pixels = pictures.preprocess(loaded, self.image_spec)
        return self.pixels(pixels)

    def pixels(self, pixels: Array) -> Vectors:
        """Embeddings of preprocessed photographs [N, 3, H, W]: float32 [N, D]."""
        found = self.sessions.run_chain(self.spec.image, self.image_inputs(pixels))
        return self._vectors(found[self.spec.image_output])

    def image_inputs(self, pixels: Array) -> dict[str, Array]:
        """What the image's chain is given for preprocessed photographs [N, 3, H, W]."""
        return {**self._least(), self.image_spec.input: pixels}

    def texts(self, sentences: Sequence[str]) -> Vectors:
        """Embeddings of sentences: float32 [N, D]. What exceeds the model's context is cut, with a warning."""
        if not sentences:
            return np.zeros((0, self.spec.dimension), np.float32)
        return self.token_ids(self.codec.encode(sentences))

    def token_ids(self, ids: NDArray[np.int64], context: Array | None = None, index: Array | None = None) -> Vectors:
        """Embeddings of rows of ids [N, L], with learned prompt vectors where the text graph takes them.

        Args:
            ids: int64 [N, L], padded at the end.
            context: float32 [N, M, W] vectors that replace tokens, or `None`.
            index: int64 [N, L], which context vector stands at a position, −1 for the token itself.
        """
        arrays = self.text_inputs(ids, context, index)
        return self._vectors(self.sessions.run_chain(self.spec.text, arrays)[self.spec.text_output])

    def text_inputs(
        self, ids: NDArray[np.int64], context: Array | None = None, index: Array | None = None
    ) -> dict[str, Array]:
        """What the text's chain is given for rows of ids [N, L]; as `token_ids`."""
        arrays = self._least()
        if self.bundle.manifest.text:
            arrays[self.bundle.manifest.text.input] = ids
        if self.spec.mask:
            # What stands behind a text's end changes nothing in CLIP, so that padding need not be told apart.
            arrays[self.spec.mask] = np.ones_like(ids)
        if self.spec.learned_context:
            name, index_name = self.spec.learned_context
            absent = np.zeros((len(ids), 1, self.spec.token_width), np.float32)
            arrays[name] = absent if context is None else context
            arrays[index_name] = np.full(ids.shape, -1, np.int64) if index is None else index
        elif context is not None:
            raise BundleError(f"the bundle `{self.bundle.name}` takes no learned prompts", "use a CLIP bundle")
        return arrays

    def _least(self) -> dict[str, Array]:
        """For one graph that wants an image and a text: the smallest of both, to be replaced by what is meant."""
        text = self.bundle.manifest.text
        if not self.spec.joint or text is None:
            return {}
        ids = np.array([[i for i in (text.start_id, text.end_id) if i is not None]], np.int64)
        pixels = np.zeros((1, 3, *self.image_spec.size), np.float32)
        masks = {self.spec.mask: np.ones_like(ids)} if self.spec.mask else {}
        return {self.image_spec.input: pixels, text.input: ids, **masks}

    def _vectors(self, found: Vectors) -> Vectors:
        return found if self.spec.normalised else found / np.linalg.norm(found, axis=-1, keepdims=True)

"""What every task that lets a decoder speak about photographs is made of: image chain, decoder, tokenizer."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from vlrt.bundle import Bundle
from vlrt.engines import EngineOptions, Sessions
from vlrt.errors import BundleError
from vlrt.manifest import DecodeSpec, ImageSpec
from vlrt.text import PromptReader, TextCodec

if TYPE_CHECKING:  # else where they are needed: the graphs load in the meantime
    from vlrt.decode import DecodeOptions, StepModel


class ImageDecoder:
    """A bundle's decoder over photographs, its graphs being loaded; tasks derive from it.

    Args:
        bundle: one that serves `task`.
        options: device and threads.

    Raises:
        BundleError: the bundle serves something else, or lacks a section.
    """

    task: ClassVar[str]

    def __init__(self, bundle: Bundle, options: EngineOptions | None = None) -> None:
        bundle.require(self.task)
        described = bundle.manifest
        if described.decode is None or described.image is None:
            raise BundleError(f"the bundle `{bundle.name}` has no decode or image section", "export it again")
        self.bundle = bundle
        self.spec: DecodeSpec = described.decode
        self.image_spec: ImageSpec = described.image
        self.sessions = Sessions(bundle, options)
        self.sessions.prepare(self.spec.roles)
        self.codec = TextCodec.open(bundle)
        self.prompt_reader = PromptReader(bundle, self.codec)

    def options(self, **overrides: Any) -> DecodeOptions:
        """The bundle's default options with some replaced.

        Raises:
            UsageError: an option that cannot be meant.
        """
        from vlrt.decode import DecodeOptions

        return DecodeOptions.from_manifest(self.spec.defaults, **overrides)

    @cached_property
    def step_model(self) -> StepModel:
        """The decoder's step, bound to its session."""
        from vlrt.decode import StepModel

        return StepModel.open(self.spec, self.sessions.get)

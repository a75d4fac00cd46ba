"""Drawing: words in, and a picture out code by code, the best of several candidates."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlrt import image as pictures
from vlrt import zoo
from vlrt.bundle import Bundle
from vlrt.codec import PictureCodec
from vlrt.decode import DecodeOptions, Hypothesis, StepBuffers, StepModel, generate
from vlrt.diffusion.memory import available
from vlrt.diffusion.request import CancelledError, PaintHooks, PaintStep
from vlrt.draw_request import STAGE, DrawRequest
from vlrt.embedding import DualEncoder
from vlrt.engines import Array, EngineOptions, Sessions
from vlrt.errors import BundleError, UsageError
from vlrt.manifest import DecodeSpec, ImageTokensSpec
from vlrt.picture_file import Painting, grid
from vlrt.text import TextCodec

Codes = NDArray[np.int64]
_HOOKS = ("on_step", "should_cancel")
_PAINTED_AT_ONCE = 4
_GREY = (128, 128, 128)
_WARPERS = ("temperature", "top_k", "top_p")


class Drawer:
    """Draws pictures as codes, with the decoder and the codec of one bundle.

    Args:
        bundle: one that serves ``generate`` and has an image tokens section.
        options: device and threads.

    Raises:
        BundleError: the bundle draws no codes.
    """

    task = "generate"

    def __init__(self, bundle: Bundle, options: EngineOptions | None = None) -> None:
        bundle.require(self.task)
        described = bundle.manifest
        if described.decode is None or described.image_tokens is None or described.text is None:
            raise BundleError(f"the bundle `{bundle.name}` draws no pictures as codes", "choose another with `--model`")
        self.bundle = bundle
        self.spec: DecodeSpec = described.decode
        self.drawn: ImageTokensSpec = described.image_tokens
        self.engine = options
        self.sessions = Sessions(bundle, options)
        self.sessions.prepare(self.spec.roles)
        self.codec = PictureCodec(bundle, options)
        self.text = TextCodec.open(bundle)

    @cached_property
    def step_model(self) -> StepModel:
        """The decoder's step, bound to its session."""
        return StepModel.open(self.spec, self.sessions.get)

    def __call__(self, prompt: str = "", **options: Any) -> Painting:
        """The best picture; see `batch`."""
        return self.batch(prompt, **{**options, "count": 1, "keep": None})[0]

    def batch(self, prompt: str = "", **options: Any) -> list[Painting]:
        """Pictures, the best first.

        Args:
            prompt: what they show.
            options: fields of `vlrt.draw_request.DrawRequest`, and ``on_step`` (told of every finished row of codes,
                a `vlrt.diffusion.request.PaintStep` whose preview shows all candidates, grey where nothing is yet)
                and ``should_cancel``.

        Raises:
            UsageError: an option that cannot be meant, a prompt that is too long, or more candidates than fit.
            CancelledError: `should_cancel` said so.
        """
        hooks = PaintHooks(**{name: options[name] for name in _HOOKS if name in options})
        request = DrawRequest.of({name: value for name, value in options.items() if name not in _HOOKS})
        return _Drawing(self, prompt, request, hooks).finish()

    def conditions(self, prompt: str) -> tuple[dict[str, Array], dict[str, Array]]:
        """What the chain makes of a prompt and of an empty one, each for one image.

        Raises:
            UsageError: the prompt is longer than the model reads.
        """
        spec = self.text.spec
        needed = len(self.text.prompt_ids((), prompt)) + (spec.start_id is not None) + (spec.end_id is not None)
        if needed > spec.context:
            what = f"the prompt has {needed} tokens, `{self.bundle.name}` reads {spec.context}"
            raise UsageError(what, f"shorten it by {needed - spec.context} tokens, about as many words")
        ids = self.text.pad([self.text.prompt_row(prompt), self.text.prompt_row("")])
        found = self.sessions.run_chain(self.spec.chain, {spec.input: ids})
        asked, nothing = ({name: array[i : i + 1] for name, array in found.items()} for i in (0, 1))
        return asked, nothing

    def decode_options(self, request: DrawRequest, steps: int) -> DecodeOptions:
        """The bundle's defaults with what was asked for.

        Raises:
            UsageError: a value that is out of range.
        """
        outside = [
            token for token in range(self.spec.vocabulary) if not 0 <= token - self.drawn.first_id < self.drawn.codebook
        ]
        return DecodeOptions.from_manifest(
            {"top_k": 0, **self.spec.defaults},
            **{name: getattr(request, name) for name in _WARPERS},
            do_sample=not request.greedy,
            num_return_sequences=request.drawn,
            max_new_tokens=steps,
            guidance_scale=request.guidance,
            suppress_tokens=tuple(outside) or None,
            seed=request.first_seed,
        )

    def begun(self, request: DrawRequest) -> Codes:
        """Codes of the photograph's upper rows, [rows, columns]; none where nothing is completed."""
        rows, columns = request.rows_of(self.drawn.grid), self.drawn.grid[1]
        if request.complete is None:
            return np.zeros((0, columns), np.int64)
        height, width = (side * self.codec.spec.factor for side in self.drawn.grid)
        return self.codec.encode([self.codec.fit(pictures.load(request.complete), (height, width))])[0, :rows]

    def check_memory(self, initial: Mapping[str, Array], prompt: list[int], options: DecodeOptions) -> None:
        """Raises `UsageError` where the candidates do not fit into memory, and says how many do."""
        shape, free = self.step_model.shape(initial, [prompt], options), available()
        if free is None or shape.total_bytes <= free or self.step_model.holds(shape):
            return
        each = shape.row_bytes * options.lanes
        fit = max(0, (free - (shape.total_bytes - shape.max_rows * shape.row_bytes)) // each)
        needed, there = (f"{size / 1e9:.1f} GB" for size in (shape.total_bytes, free))
        what = f"{options.num_return_sequences} candidates need {needed} beside the weights, {there} are free"
        raise UsageError(what, f"--candidates {fit}" if fit else "free some memory; not even one fits")


class _Drawing:
    """One call of a drawer."""

    def __init__(self, drawer: Drawer, prompt: str, request: DrawRequest, hooks: PaintHooks) -> None:
        self.drawer, self.prompt, self.request, self.hooks = drawer, prompt, request, hooks
        rows, columns = drawer.drawn.grid
        self.begun = drawer.begun(request)
        self.options = drawer.decode_options(request, rows * columns - self.begun.size)
        self.ranker = self._ranker()
        self.first = len(drawer.spec.start_ids)
        self.codes: Codes = np.full((request.drawn, rows * columns), -1, np.int64)
        self.codes[:, : self.begun.size] = self.begun.ravel()
        self.timings: dict[str, float] = {}

    def finish(self) -> list[Painting]:
        """Draws, paints and ranks."""
        found = self._timed("decode", self._decode)
        for place, hypothesis in enumerate(found):
            self.codes[place, self.begun.size :] = np.asarray(hypothesis.tokens) - self.drawer.drawn.first_id
        painted = self._timed("paint", lambda: self._paint(self.codes))
        scores, order = self._timed("rank", lambda: self._rank(painted, found))
        shared = {"task": self.drawer.task, "bundle": self.drawer.bundle.name, "prompt": self.prompt}
        shared |= self.request.parameters()
        return [
            Painting(painted[i], {**shared, "candidate": i, "score": round(scores[i], 5)}, self.timings)
            for i in order[: self.request.kept]
        ]

    def _timed(self, name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        done = work()
        self.timings[name] = time.perf_counter() - started
        return done

    def _decode(self) -> list[Hypothesis]:
        drawer, model = self.drawer, self.drawer.step_model
        asked, nothing = drawer.conditions(self.prompt)
        prompt = [*drawer.spec.start_ids, *(int(code) + drawer.drawn.first_id for code in self.begun.ravel())]
        drawer.check_memory(model.initial_values(asked), prompt, self.options)
        (found,) = generate(
            model,
            asked,
            self.options,
            prompts=[prompt],
            unconditional=nothing,
            should_cancel=self.hooks.should_cancel,
            watch=self._watch,
        )
        if any(len(hypothesis.tokens) < self.options.max_new_tokens for hypothesis in found):
            raise CancelledError("drawing was cancelled", "nothing was written")
        return found

    def _watch(self, buffers: StepBuffers) -> None:
        """Notes what each candidate is about to read, and tells of finished rows."""
        if self.hooks.on_step is None or buffers.width > 1:
            return
        cell, columns = int(buffers.positions[0, 0]) - self.first, self.drawer.drawn.grid[1]
        if not self.begun.size <= cell < self.codes.shape[1]:
            return
        rows = min(buffers.rows // self.options.lanes, len(self.codes))
        self.codes[:rows, cell] = buffers.tokens[:rows, 0] - self.drawer.drawn.first_id
        if (cell + 1) % columns == 0:
            self._tell((cell + 1) // columns, self.hooks.on_step)

    def _tell(self, row: int, on_step: Callable[[PaintStep], object]) -> None:
        grid_rows, columns = self.drawer.drawn.grid
        sample = self.codes.reshape(len(self.codes), grid_rows, columns).astype(np.float32)
        on_step(PaintStep(STAGE, row, grid_rows, 0, 1, sample, lambda: self._preview(row)))

    def _preview(self, row: int) -> Image.Image:
        """All candidates so far, grey below the row."""
        painted = self._paint(np.maximum(self.codes, 0))
        top = row * self.drawer.codec.spec.factor
        for picture in painted:
            picture.paste(_GREY, (0, top, picture.width, picture.height))
        return grid(painted)

    def _paint(self, codes: Codes) -> list[Image.Image]:
        whole = codes.reshape(len(codes), *self.drawer.drawn.grid)
        starts = range(0, len(whole), _PAINTED_AT_ONCE)
        return [one for i in starts for one in self.drawer.codec.pictures(whole[i : i + _PAINTED_AT_ONCE])]

    def _ranker(self) -> DualEncoder | None:
        """Opened before anything is drawn, so that a wrong name costs no minutes."""
        if self.request.rank is None:
            return None
        if not self.prompt.strip():
            raise UsageError("there is no prompt to rank pictures by", "leave out `rank`, or say what they show")
        return DualEncoder(zoo.resolve(self.request.rank, "embed"), self.drawer.engine)

    def _rank(self, painted: list[Image.Image], found: list[Hypothesis]) -> tuple[list[float], list[int]]:
        """Cosines with the prompt, or log-probabilities; and the candidates, best first."""
        if self.ranker is None:
            scores = [hypothesis.log_probability for hypothesis in found]
        else:
            words = self.ranker.texts([self.prompt])[0]
            vectors = self.ranker.images(painted)
            # Where a picture has several embeddings, the best one's cosine counts.
            scores = [float(np.max(vector @ words)) for vector in vectors]
        return scores, sorted(range(len(scores)), key=lambda i: -scores[i])

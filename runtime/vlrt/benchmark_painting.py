"""What `vlrt bench generate` runs: pictures from a prompt, with the time of every step of every stage."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from vlrt.bundle import Bundle
from vlrt.diffusion.prompt_cache import PromptCache
from vlrt.diffusion.request import PaintStep
from vlrt.engines import EngineOptions
from vlrt.tasks.draw import Drawer
from vlrt.tasks.generate import Painter
from vlrt.verify import SENTENCES


class PaintProbe:
    """Painting with every graph loaded, and every prompt encoded anew.

    Args:
        bundle: one that serves ``generate`` by diffusion.
        given: options of the request, e.g. ``steps``.

    Attributes:
        stage_steps: seconds between two steps of a stage, by its name, over all runs of one picture.
    """

    def __init__(self, bundle: Bundle, options: EngineOptions, given: dict[str, Any]) -> None:
        self.painter = Painter(bundle, options, keep_loaded=True)
        self.painter.cascade.prompts.cache = PromptCache(keeps=False)
        self.sessions = self.painter.cascade.sessions
        spec = self.painter.spec
        wanted = [role for prompt in spec.prompts for role in prompt.chain]
        wanted += [role for stage in spec.stages for role in stage.roles]
        for role in dict.fromkeys(wanted):
            self.sessions.get(role)
        self.given = {"seed": 0, **({"label": 0} if spec.label_input else {}), **given}
        self.prompt = SENTENCES[0] if spec.prompts else ""
        self.steps: list[float] = []
        self.stage_steps: dict[str, list[float]] = {}
        self.result = ""

    def run(self, photographs: Sequence[bytes]) -> dict[str, float]:
        """Paints as many pictures as there are photographs, which nothing reads; seconds by stage."""
        ticks: dict[str, list[float]] = {}

        def on_step(step: PaintStep) -> None:
            ticks.setdefault(step.stage, []).append(time.perf_counter())

        found = self.painter.batch(self.prompt, count=len(photographs), on_step=on_step, **self.given)
        if len(photographs) == 1:
            for stage, marks in ticks.items():
                self.stage_steps.setdefault(stage, []).extend(b - a for a, b in pairwise(marks))
        picture = found[0].picture
        self.result = f"{picture.width}x{picture.height} pixels"
        return dict(found[0].timings)


class DrawProbe:
    """Drawing code by code; a step is a row of codes of all pictures together.

    Args:
        bundle: one that serves ``generate`` and draws codes.
        given: options of the request.

    Attributes:
        stage_steps: seconds between two rows of codes, under ``row of codes``, over all runs of one picture.
    """

    def __init__(self, bundle: Bundle, options: EngineOptions, given: dict[str, Any]) -> None:
        self.drawer = Drawer(bundle, options)
        self.sessions = self.drawer.sessions
        for role in self.drawer.spec.roles:
            self.sessions.get(role)
        self.given = {"seed": 0, **given}
        self.steps: list[float] = []
        self.stage_steps: dict[str, list[float]] = {}
        self.result = ""

    def run(self, photographs: Sequence[bytes]) -> dict[str, float]:
        """Draws as many pictures as there are photographs, which nothing reads; seconds by stage."""
        marks: list[float] = []
        found = self.drawer.batch(
            SENTENCES[0],
            candidates=len(photographs),
            keep=1,
            on_step=lambda step: marks.append(time.perf_counter()),
            **self.given,
        )
        if len(photographs) == 1:
            self.stage_steps.setdefault("row of codes", []).extend(b - a for a, b in pairwise(marks))
        picture = found[0].picture
        self.result = f"{picture.width}x{picture.height} pixels"
        return dict(found[0].timings)

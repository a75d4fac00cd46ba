"""What a reduced bundle must still do as well as its fp32 twin: a metric for each section that a manifest may have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from vlrt.bundle import Bundle
from vlrt.manifest import Manifest, Measurement
from vlrt_export.calibration import Calibration
from vlrt_export.trial import TrialSessions

Limits = Mapping[str, float]
"""Largest losses by name, from models.yaml."""


class Metric(Protocol):
    """How one section of a manifest is judged."""

    def observe(self, bundle: Bundle, sessions: TrialSessions, data: Calibration, expected: Any) -> Any:
        """What the bundle does on the held-out data; `expected` is what its fp32 twin did, or `None` for that one."""

    def compare(self, expected: Any, found: Any, data: Calibration, limits: Limits) -> Iterator[Measurement]:
        """How far `found` lies from `expected`, with the limits."""


_METRICS: dict[str, Callable[[], Metric]] = {}


def register(section: str) -> Callable[[Callable[[], Metric]], Callable[[], Metric]]:
    """Makes a class the metric of bundles whose manifest has that section."""

    def keep(made: Callable[[], Metric]) -> Callable[[], Metric]:
        _METRICS[section] = made
        return made

    return keep


def metrics_of(described: Manifest) -> dict[str, Metric]:
    """The metrics of a manifest's sections, by section."""
    from vlrt_export import gate_captions, gate_codecs, gate_embeddings, gate_painting  # noqa: F401 - register themselves

    sections = [name for name in _METRICS if getattr(described, name, None) is not None]
    if "image_tokens" in sections:
        sections.remove("decode")  # its decoder writes pictures, not sentences
    return {name: _METRICS[name]() for name in sections}


def reference(data: Calibration) -> tuple[str, str, str]:
    """The last fields of a measurement against the fp32 twin."""
    return "the same graphs in fp32", "", f"{len(data.held_out)} held-out of {data.origin}"

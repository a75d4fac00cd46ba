"""Goldens of a bundle: what torch's own modules give on the fixed inputs of `vlrt.verify`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from vlrt.bundle import Bundle
from vlrt.engines import Array, Sessions
from vlrt.verify import observe
from vlrt_export.graph import Graph, Plan
from vlrt_export.parity import run_torch

FILE = "goldens.json"


def write_goldens(plan: Plan, folder: Path, bundle: Bundle, sessions: Sessions) -> None:
    """Writes `goldens.json` beside the staged graphs; decoding itself runs in our loop on the proven step graph."""
    graphs = {graph.role: graph for graph in plan.graphs}

    def run_chain(roles: Iterable[str], arrays: Mapping[str, Array]) -> dict[str, Array]:
        known = dict(arrays)
        produced: dict[str, Array] = {}
        for role in roles:
            outputs = _run(graphs[role], known)
            graphs[role].drop_weights()
            produced |= outputs
            known |= outputs
        return produced

    write_observed(folder, observe(bundle, run_chain, sessions))


def write_observed(folder: Path, observed: Mapping[str, Any]) -> None:
    """Writes what `vlrt.verify.observe` gave as `goldens.json`."""
    (folder / FILE).write_text(json.dumps(observed, indent=None) + "\n", encoding="utf-8")


def _run(graph: Graph, known: Mapping[str, Array]) -> dict[str, Array]:
    return run_torch(graph, {name: torch.from_numpy(known[name]) for name in graph.inputs})

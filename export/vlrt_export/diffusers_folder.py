"""A pipeline in diffusers' layout: `model_index.json`, and a folder of configuration and weights per component."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from vlrt.errors import VlrtError
from vlrt.manifest import Source
from vlrt_export import hub, weight_layout
from vlrt_export.checkpoints import Checkpoint, open_checkpoint, read_json
from vlrt_export.request import Request
from vlrt_export.weight_layout import Part

Module = TypeVar("Module", bound=nn.Module)

INDEX = "model_index.json"
RANDOM_NOTE = "random weights: for latency work only"
_SIDE_FILES = (INDEX, "*.json", "*.txt", "*.model")
_WEIGHTS = ("diffusion_pytorch_model", "model", "pytorch_model")
_IGNORED = r"position_ids$|^lm_head\.|^safety_checker\."
_RENAMED = ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0."))
"""Names that attention layers of autoencoders had before diffusers 0.18; published files keep them."""


@dataclass(frozen=True)
class Component:
    """One part of a pipeline.

    Args:
        name: its folder's.
        kind: the class diffusers or transformers has for it.
        config: its configuration.
        checkpoint: its weights; `None` for random ones.
        seed: of random weights.
        folder: that holds further files, e.g. of a tokenizer.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    checkpoint: Checkpoint | None = None
    seed: int = 0
    folder: Path | None = None

    def model(self) -> Any:
        """Diffusers' own model of that class with these weights, widened to fp32, in eval mode.

        Raises:
            VlrtError: diffusers has no such class; a tensor is missing, left over, of another shape or dtype.
        """
        import diffusers

        made = getattr(diffusers, self.kind, None)
        if made is None:
            raise VlrtError(f"`{self.name}` is a `{self.kind}`, which diffusers has not", "is the family right?")
        return self.build(lambda: made.from_config(dict(self.config)))

    def build(self, make: Callable[[], Module], layout: weight_layout.Layout | None = None) -> Module:
        """A module with this component's weights, or with random ones of the seed.

        Args:
            layout: by the module's parameters; equal names where `None`.

        Raises:
            VlrtError: a tensor is missing, left over, of another shape or dtype; the message names it.
        """
        if self.checkpoint is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                return make().eval().requires_grad_(False)
        tensors, where = self.checkpoint.tensors, self.where
        if layout is None:
            with torch.device("meta"):
                layout = {name: Part((_published(name, tensors),)) for name in make().state_dict()}
        weight_layout.check_surplus(tensors, weight_layout.names_of(layout), _IGNORED, where)
        return weight_layout.build(make, layout, tensors, where)

    @property
    def where(self) -> str:
        """What messages call it."""
        return f"{self.checkpoint.origin}/{self.name}" if self.checkpoint else self.name


@dataclass(frozen=True)
class Pipeline:
    """A pipeline's components by name.

    Args:
        kind: class of the pipeline in diffusers, e.g. ``StableDiffusionPipeline``.
        components: those with a configuration of their own.
        settings: plain values of ``model_index.json``, e.g. ``requires_safety_checker``.
        origin: hub id or the folder's name.
        commit: the hub's commit; empty for local folders.
    """

    kind: str
    components: Mapping[str, Component]
    settings: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""
    commit: str = ""

    def __getitem__(self, name: str) -> Component:
        if name not in self.components:
            what = f"`{self.origin}` has no component `{name}`"
            raise VlrtError(what, f"it has {', '.join(self.components)}; is it the family's?")
        return self.components[name]

    def __contains__(self, name: object) -> bool:
        return name in self.components

    def replaced(self, name: str, component: Component) -> Pipeline:
        """With another component in the place of the one of that name."""
        return replace(self, components={**self.components, name: component})

    @functools.cached_property
    def revision(self) -> str:
        """The hub's commit, or the digest of the weight files' digests."""
        if self.commit:
            return self.commit
        import hashlib

        opened = [part.checkpoint for part in self.components.values() if part.checkpoint is not None]
        joined = "".join(checkpoint.revision for checkpoint in opened)
        return f"sha256:{hashlib.sha256(joined.encode()).hexdigest()}"


def open_pipeline(source: str) -> Pipeline:
    """Opens a folder or hub id in diffusers' layout; weights are read when a model is built, and never unpickled.

    Raises:
        VlrtError: no such folder, no ``model_index.json``, or the hub cannot be reached.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _read(path, path.resolve().name, "")
    if path.exists() or not hub.is_hub_id(source):
        what = f"`{source}` is not a folder in diffusers' layout"
        raise VlrtError(what, f"give a folder with {INDEX}, or a hub id such as `owner/name`")
    found = hub.fetch(source, patterns=_SIDE_FILES, weights=False)
    names = [name for name, value in read_json(found.folder / INDEX).items() if isinstance(value, list)]
    for ending in (".safetensors", ".bin"):
        files = [f"{name}/{stem}{part}{ending}" for name in names for stem in _WEIGHTS for part in ("", "-0*")]
        found = hub.fetch(source, found.commit, (*_SIDE_FILES, *files), weights=False)
        if any(found.folder.glob(f"*/*{ending}")):
            break
    return _read(found.folder, found.name, found.commit)


def random_pipeline(kind: str, kinds: Mapping[str, str], options: Mapping[str, Any], seed: int) -> Pipeline:
    """A pipeline of random weights.

    Args:
        kinds: class of each component.
        options: configuration by component, from the zoo's entry; diffusers' defaults where it says nothing.
    """
    components = {
        name: Component(name, made, dict(options.get(name) or {}), seed=seed + number)
        for number, (name, made) in enumerate(kinds.items())
    }
    return Pipeline(kind, components, origin="random")


def source_of(request: Request, pipeline: Pipeline, notes: tuple[str, ...] = ()) -> Source:
    """Where a bundle's weights come from, for its manifest."""
    if request.random:
        return Source("random", f"seed {request.seed}", "none", "; ".join([RANDOM_NOTE, *notes]))
    known = request.source == request.entry.source
    licence = request.entry.license if known and request.entry.license else "see the checkpoint's source"
    return Source(pipeline.origin, pipeline.revision, licence, "; ".join(notes))


def _read(folder: Path, origin: str, commit: str) -> Pipeline:
    if not (folder / INDEX).is_file():
        raise VlrtError(f"`{origin}` has no {INDEX}", "give the folder that diffusers' save_pretrained wrote")
    index = read_json(folder / INDEX)
    components = {}
    for name, value in index.items():
        if isinstance(value, list) and len(value) == 2 and value[1] and (folder / name).is_dir():
            components[name] = _component(folder / name, str(value[1]), origin, commit)
    settings = {name: value for name, value in index.items() if not isinstance(value, list)}
    return Pipeline(str(index.get("_class_name", "")), components, settings, origin, commit)


def _component(folder: Path, kind: str, origin: str, commit: str) -> Component:
    if not (folder / "config.json").is_file():
        files = (folder / name for name in ("scheduler_config.json", "preprocessor_config.json"))
        config = next((read_json(file) for file in files if file.is_file()), {})
        return Component(folder.name, kind, config, folder=folder)
    config = read_json(folder / "config.json")
    if not _has_weights(folder):
        return Component(folder.name, kind, config, folder=folder)
    opened = replace(open_checkpoint(folder, weights=_weights(folder)), origin=origin, commit=commit)
    return Component(folder.name, kind, config, opened, folder=folder)


def _has_weights(folder: Path) -> bool:
    return any(path.suffix in (".safetensors", ".bin") for path in folder.iterdir())


def _weights(folder: Path) -> str:
    """The weight file meant where there are others beside it (halved, or with other averages of the training)."""
    for ending in (".safetensors", ".bin"):
        for stem in _WEIGHTS:
            if (folder / f"{stem}{ending}").is_file():
                return f"{stem}{ending}"
            if (folder / f"{stem}{ending}.index.json").is_file():
                return f"{stem}{ending}.index.json"
    return ""


def _published(name: str, tensors: Mapping[str, Any]) -> str:
    """The name under which a checkpoint has a parameter: today's, or that of old attention layers."""
    if name in tensors:
        return name
    for old, new in _RENAMED:
        if name.replace(new, old) in tensors:
            return name.replace(new, old)
    return name

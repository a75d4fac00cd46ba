"""DALL-E checkpoints of lucidrains/DALLE-pytorch: a torch file with hyperparameters, weights and the codec's own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from vlrt.attention_patterns import PatternSpec
from vlrt.errors import VlrtError
from vlrt_export import weight_layout
from vlrt_export.checkpoints import Checkpoint
from vlrt_export.dalle_model import DalleModel, assemble, branch_layout, lazily, rotary_layout, with_rotation
from vlrt_export.image_codec import under
from vlrt_export.modules.dalle import DalleSizes
from vlrt_export.weight_layout import Layout, Part, linear, same

_PREFIX = "weights."
_LAYER = re.compile(r"transformer\.layers\.(?:layers|blocks)\.(\d+)\.(0|1|f\.net|g\.net)\.(?:fn\.)*(.+)")
_PARTS = {
    ("0", "norm"): "attention.norm",
    ("0", "norm_out"): "attention.norm_behind",
    ("0", "scale"): "attention.scale",
    ("0", "to_qkv"): "queries_keys_values",
    ("0", "to_out.0"): "project",
    ("1", "norm"): "feed_forward.norm",
    ("1", "norm_out"): "feed_forward.norm_behind",
    ("1", "scale"): "feed_forward.scale",
    ("1", "net.0"): "widen",
    ("1", "net.3"): "narrow",
}
_SPARSE = {"axial_row": ("row", "row"), "axial_col": ("column", "column"), "conv_like": ("conv", "above_left")}
_IGNORED = r"^(vae\.|transformer\.pos_emb$|logits_mask$|opt_state|scheduler_state)|(static_mask|attn_fn\..*)$"


def is_dalle_pytorch(checkpoint: Checkpoint) -> bool:
    """Whether the names are those of DALLE-pytorch, in its own file or as a bare state dict."""
    return any(_LAYER.match(name.removeprefix(_PREFIX)) and ".to_qkv." in name for name in checkpoint.tensors)


def load_dalle_pytorch(checkpoint: Checkpoint, options: Mapping[str, Any]) -> DalleModel:
    """Reads a checkpoint of `train_dalle.py`; what its hyperparameters do not say comes from shapes.

    Args:
        options: those of the export; `hparams` stand in for a bare state dict's, `kernel` and `dilation` are those of
            ``conv_like`` (5 and 1 where not given, as in the reference).

    Raises:
        VlrtError: an attention that is not served; a tensor missing, left over, of another shape or dtype.
    """
    where = checkpoint.origin
    tensors = _named(checkpoint)
    given = {**dict(checkpoint.values.get("hparams") or {}), **dict(options.get("hparams") or {})}
    sizes = _sizes(tensors, given, options, where)
    loaders = with_rotation(tensors, sizes, tensors.get("transformer.pos_emb"))
    first = _words(tensors)
    loaders |= {
        "to_logits.codes.weight": lambda: tensors["to_logits.1.weight"][first:],
        "to_logits.codes.bias": lambda: tensors["to_logits.1.bias"][first:],
    }
    if "text_emb.weight" not in tensors:  # input and output share one matrix
        loaders["text_emb.weight"] = lambda: tensors["to_logits.1.weight"][:first]
        loaders["image_emb.weight"] = lambda: tensors["to_logits.1.weight"][first:]
    for name in [name for name in tensors if name.startswith("image_pos_emb.")]:
        loaders[name] = partial(_rows, tensors, name, sizes.width)
    layouts = _layouts(sizes, tensors)
    text, decoder = assemble(sizes, layouts, lazily(loaders, where), where)
    known = weight_layout.names_of(*layouts) | {"to_logits.1.weight", "to_logits.1.bias"}
    weight_layout.check_surplus(tensors, known, _IGNORED + r"|^(text_emb|image_emb)\.linear\.", where)
    return DalleModel(text, decoder, checkpoint)


def embedded_codec(checkpoint: Checkpoint) -> Checkpoint | None:
    """The codec that a checkpoint holds beside the transformer, as a checkpoint of its own; `None` without one.

    Raises:
        VlrtError: it treats pixels otherwise than the library does by default.
    """
    params = checkpoint.values.get("vae_params") or {}
    usual = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    treated = params.get("normalization", usual)
    if treated is None or tuple(tuple(part)[:3] for part in treated) != usual:
        what = f"the codec of `{checkpoint.origin}` normalises pixels by {treated}, served is {usual}"
        raise VlrtError(what, "report this with the model")
    for prefix in (f"{_PREFIX}vae.model.", f"{_PREFIX}vae.", "vae.model.", "vae."):
        found = under(checkpoint.tensors, prefix, checkpoint.origin)
        if len(found):
            values = {"vae_params": params}
            return Checkpoint(found, {}, None, checkpoint.files, checkpoint.origin, layout="state-dict", values=values)
    return None


def _named(checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    """Tensors without the wrappers that the library puts around its layers: ``layers.0.attention.norm.weight``."""
    inside = under(checkpoint.tensors, _PREFIX, checkpoint.origin)
    tensors: Mapping[str, Tensor] = inside if len(inside) else checkpoint.tensors
    named: dict[str, Callable[[], Tensor]] = {}
    for name in tensors:
        plain, load = _plain_name(name), partial(tensors.__getitem__, name)
        named[plain] = partial(_flat, load) if plain.endswith(".scale") else load
    return lazily(named, checkpoint.origin)


def _flat(load: Callable[[], Tensor]) -> Tensor:
    return load().reshape(-1)


def _plain_name(name: str) -> str:
    found = _LAYER.match(name)
    if not found:
        return name
    layer, branch, rest = found.groups()
    branch = {"f.net": "0", "g.net": "1"}.get(branch, branch)
    part, _, kind = ("scale", "", "") if rest == "scale" else rest.rpartition(".")
    ours = _PARTS.get((branch, part))
    return f"layers.{layer}.{ours}{'.' + kind if kind else ''}" if ours else name


def _rows(tensors: Mapping[str, Tensor], name: str, width: int) -> Tensor:
    return tensors[name].reshape(-1, width)


def _words(tensors: Mapping[str, Tensor]) -> int:
    """Rows of the text embedding; where it is shared, what is not codes cannot be told from the weights alone."""
    if "text_emb.weight" in tensors:
        return len(tensors["text_emb.weight"])
    return len(tensors["to_logits.1.weight"]) - _codes(tensors)


def _codes(tensors: Mapping[str, Tensor]) -> int:
    for name in (
        "image_emb.weight",
        "vae.codebook.weight",
        "vae.model.quantize.embedding.weight",
        "vae.model.quantize.embed.weight",
        "vae.dec.blocks.input.w",
    ):
        if name in tensors:
            return int(tensors[name].shape[1 if name.endswith("input.w") else 0])
    what = "the weights do not say how many codes there are, because words and codes share one matrix"
    raise VlrtError(what, "export from the whole checkpoint, which brings the codec")


def _sizes(
    tensors: Mapping[str, Tensor], given: Mapping[str, Any], options: Mapping[str, Any], where: str
) -> DalleSizes:
    layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("layers."))
    heads = int(given.get("heads", 8))
    try:
        inner, width = tensors["layers.0.project.weight"].shape[::-1]
        words, text = _words(tensors), int(given.get("text_seq_len", 256))
        if "text_pos_emb.weight" in tensors:
            text = len(tensors["text_pos_emb.weight"]) - 1
        grid = _grid(tensors, text)
        kinds = given.get("attn_types") or ("full",)
        attention, patterns = _attention(
            (kinds,) if isinstance(kinds, str) else tuple(kinds), layers, text + 1, grid, options
        )
        if inner % heads:
            raise ValueError(f"{heads} heads do not divide {inner}")
        return DalleSizes(
            words=words,
            text=text,
            begin=0,
            codebook=len(tensors["to_logits.1.weight"]) - words,
            grid=grid,
            width=width,
            heads=heads,
            head_width=inner // heads,
            feed_forward=tensors["layers.0.narrow.weight"].shape[1],
            attention=attention,
            patterns=patterns,
            gated=True,
            sandwich="layers.0.attention.norm_behind.weight" in tensors,
            scaled="layers.0.attention.scale" in tensors,
            reversible=bool(given.get("reversible", False)),
            divided=bool(given.get("stable", False)),
            rotary="text_pos_emb.weight" not in tensors,
            shifted=bool(given.get("shift_tokens", True)),
        )
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise VlrtError(f"`{where}` is not a DALL-E of DALLE-pytorch: {error}", "is the file whole?") from None


def _grid(tensors: Mapping[str, Tensor], text: int) -> tuple[int, int]:
    for names in (
        ("image_pos_emb.weights.0", "image_pos_emb.weights.1"),
        ("image_pos_emb.weights_0", "image_pos_emb.weights_1"),
    ):
        if names[0] in tensors:
            return tensors[names[0]].shape[1], tensors[names[1]].shape[2]
    cells = tensors["transformer.pos_emb"].shape[-2] - text - 1
    side = round(cells**0.5)
    if side * side != cells:
        raise ValueError(f"{cells} positions of a picture are no square")
    return side, side


def _attention(
    kinds: tuple[str, ...], layers: int, text: int, grid: tuple[int, int], options: Mapping[str, Any]
) -> tuple[tuple[str, ...], tuple[PatternSpec, ...]]:
    """Kinds repeat until every layer has one."""
    unserved = sorted(set(kinds) - {"full", *_SPARSE})
    if unserved:
        what = f"layers of the attention `{unserved[0]}` are not served"
        raise VlrtError(
            what, "served are full, axial_row, axial_col and conv_like; `sparse` needs DeepSpeed's random blocks"
        )
    chosen = [kinds[layer % len(kinds)] for layer in range(layers)]
    square = {"kernel": int(options.get("kernel") or 5), "dilation": int(options.get("dilation") or 1)}
    patterns = tuple(
        PatternSpec(name, kind, text, grid, **(square if kind == "above_left" else {}))  # type: ignore[arg-type]
        for theirs, (name, kind) in _SPARSE.items()
        if theirs in chosen
    )
    return tuple(_SPARSE[kind][0] if kind in _SPARSE else "" for kind in chosen), patterns


def _layouts(sizes: DalleSizes, tensors: Mapping[str, Tensor]) -> tuple[Layout, Layout]:
    text = {"words.weight": Part(("text_emb.weight",))}
    decoder = {"codes.weight": Part(("image_emb.weight",))} | same("norm", "to_logits.0")
    decoder |= linear("logits", "to_logits.codes") | rotary_layout(sizes)
    if not sizes.rotary:
        text["places.weight"] = Part(("text_pos_emb.weight",))
        dot = "." if "image_pos_emb.weights.0" in tensors else "_"
        decoder["rows.weight"] = Part((f"image_pos_emb.weights{dot}0",))
        decoder["columns.weight"] = Part((f"image_pos_emb.weights{dot}1",))
    return text, decoder | branch_layout(sizes, lambda layer, part: f"layers.{layer}.{part}")

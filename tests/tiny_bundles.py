"""Tiny bundles made with `onnx.helper`: every kind of graph the runtime serves, in milliseconds and without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from vlrt import manifest
from vlrt.bundle import MANIFEST, Bundle, sha256
from vlrt.engines import Sessions
from vlrt.manifest import (
    DecodeSpec,
    EmbedSpec,
    FileRecord,
    GraphSpec,
    ImageSpec,
    Manifest,
    RecordSpec,
    Source,
    StateSpec,
    TensorSpec,
    TextSpec,
)
from vlrt.verify import observe

WORDS = (
    "<pad>",
    "<start>",
    "<end>",
    "<unk>",
    "a",
    "the",
    "dog",
    "cat",
    "child",
    "car",
    "runs",
    "sits",
    "on",
    "in",
    "red",
)
SIDE, REGIONS, CHANNELS, HIDDEN, ANNOTATION, EMBEDDING, DIMENSION = 8, 16, 6, 7, 5, 4, 8
_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


class GraphMaker:
    """Collects nodes and weights of one graph; weights are drawn as they are asked for."""

    def __init__(self, role: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], seed: int) -> None:
        self.role, self.inputs, self.outputs = role, tuple(inputs), tuple(outputs)
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, *shape: int, scale: float = 1.0) -> str:
        return self.constant((self.random.standard_normal(shape) * scale).astype(np.float32))

    def constant(self, values: object, dtype: type = np.int64) -> str:
        array = values if isinstance(values, np.ndarray) else np.asarray(values, dtype)
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def __call__(self, operator: str, *inputs: str, to: str = "", **attributes: object) -> str:
        name = to or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def model(self) -> onnx.ModelProto:
        inputs, outputs = ([_value_info(t) for t in specs] for specs in (self.inputs, self.outputs))
        graph = helper.make_graph(self.nodes, self.role, inputs, outputs, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)

    def save(self, folder: Path) -> GraphSpec:
        file = f"{self.role}.onnx"
        onnx.save_model(self.model(), folder / file)
        return GraphSpec(file, "fp32", self.inputs, self.outputs)


def _value_info(tensor: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, _TYPES[tensor.dtype], list(tensor.shape))


def tensor(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, dtype, shape)


def image_encoder() -> GraphMaker:
    """pixels [N, 3, 8, 8] -> regions [N, 16, 6]: a convolution of stride 2."""
    g = GraphMaker("image_encoder", [tensor("pixels", "batch", 3, SIDE, SIDE)], [_regions()], 1)
    maps = g("Conv", "pixels", g.weight(CHANNELS, 3, 2, 2), kernel_shape=[2, 2], strides=[2, 2])
    flat = g("Reshape", g("Relu", maps), g.constant([0, CHANNELS, REGIONS]))
    g("Transpose", flat, perm=[0, 2, 1], to="regions")
    return g


def caption_memory() -> GraphMaker:
    """regions -> memory [N, 16, 5] and the first hidden state [N, 7]."""
    outputs = [tensor("memory", "batch", REGIONS, ANNOTATION), tensor("hidden", "batch", HIDDEN)]
    g = GraphMaker("caption_memory", [_regions()], outputs, 2)
    g("Tanh", g("MatMul", "regions", g.weight(CHANNELS, ANNOTATION)), to="memory")
    mean = g("ReduceMean", "memory", g.constant([1]), keepdims=0)
    g("Tanh", g("MatMul", mean, g.weight(ANNOTATION, HIDDEN, scale=2.0)), to="hidden")
    return g


def caption_step() -> GraphMaker:
    """One attentive recurrent step; R rows against B memories, R = B·k, image-major."""
    rows = "rows"
    g = GraphMaker(
        "caption_step",
        [
            tensor("token", rows, dtype="int64"),
            tensor("hidden", rows, HIDDEN),
            tensor("memory", "images", REGIONS, ANNOTATION),
        ],
        [tensor("logits", rows, len(WORDS)), tensor("hidden_next", rows, HIDDEN), tensor("attention", rows, REGIONS)],
        3,
    )
    images = g("Shape", "memory", end=1)
    query = g("MatMul", "hidden", g.weight(HIDDEN, ANNOTATION))
    shape = g("Concat", images, g.constant([-1, ANNOTATION]), axis=0)
    scores = g("MatMul", g("Reshape", query, shape), g("Transpose", "memory", perm=[0, 2, 1]))
    shares = g("Softmax", scores, axis=-1)
    context = g("Reshape", g("MatMul", shares, "memory"), g.constant([-1, ANNOTATION]))
    g("Reshape", shares, g.constant([-1, REGIONS]), to="attention")
    word = g("Gather", g.weight(len(WORDS), EMBEDDING), "token")
    mixed = g("Concat", word, context, "hidden", axis=1)
    g("Tanh", g("MatMul", mixed, g.weight(EMBEDDING + ANNOTATION + HIDDEN, HIDDEN)), to="hidden_next")
    g("MatMul", "hidden_next", g.weight(HIDDEN, len(WORDS)), to="logits")
    return g


def image_embedding() -> GraphMaker:
    """regions -> image_embedding [N, 8] of length one."""
    g = GraphMaker("image_embedding", [_regions()], [tensor("image_embedding", "batch", DIMENSION)], 4)
    mean = g("ReduceMean", "regions", g.constant([1]), keepdims=0)
    _normalise(g, g("MatMul", mean, g.weight(CHANNELS, DIMENSION)), "image_embedding")
    return g


def text_encoder() -> GraphMaker:
    """input_ids [N, L] -> text_embedding [N, 8]: the sum of word vectors, padding (id 0) left out."""
    ids = tensor("input_ids", "texts", "length", dtype="int64")
    g = GraphMaker("text_encoder", [ids], [tensor("text_embedding", "texts", DIMENSION)], 5)
    vectors = g.random.standard_normal((len(WORDS), DIMENSION)).astype(np.float32)
    vectors[0] = 0
    words = g("Gather", g.constant(vectors), "input_ids")
    _normalise(g, g("ReduceSum", words, g.constant([1]), keepdims=0), "text_embedding")
    return g


def tokenizer_json() -> str:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens(["<pad>", "<start>", "<end>"])
    return str(tokenizer.to_str())


def describe(graphs: dict[str, GraphSpec], files: dict[str, FileRecord]) -> Manifest:
    """The manifest of the tiny bundle."""
    half = 127.5
    return Manifest(
        schema=manifest.SCHEMA,
        name="tiny",
        family="tiny",
        tasks=("caption", "match", "search", "embed", "classify"),
        source=Source("tests", "0", "Apache-2.0", "random weights"),
        files=files,
        graphs=graphs,
        image=ImageSpec((SIDE, SIDE), (half, half, half), (half, half, half)),
        text=TextSpec("tokenizer.json", context=16, vocabulary=len(WORDS), pad_id=0, start_id=1, end_id=2),
        decode=DecodeSpec(
            chain=("image_encoder", "caption_memory"),
            step="caption_step",
            vocabulary=len(WORDS),
            start_ids=(1,),
            end_ids=(2,),
            pad_id=0,
            states=(StateSpec("recurrent", "hidden", "hidden_next"), StateSpec("memory", "memory")),
            max_length=64,
            records=(RecordSpec("attention", (4, 4)),),
            defaults={
                "num_beams": 3,
                "min_new_tokens": 3,
                "max_new_tokens": 9,
                "length_penalty": 0.7,
                "suppress_tokens": [0, 1, 3],
            },
        ),
        embed=EmbedSpec(("image_encoder", "image_embedding"), ("text_encoder",), DIMENSION, 10.0),
        created_by={"vlrt": "0"},
        card="Random weights: it knows nothing.",
    )


def write_bundle(folder: Path) -> Manifest:
    """Writes the tiny bundle, its goldens included."""
    folder.mkdir(parents=True)
    makers = (image_encoder(), caption_memory(), caption_step(), image_embedding(), text_encoder())
    graphs = {maker.role: maker.save(folder) for maker in makers}
    (folder / "tokenizer.json").write_text(tokenizer_json(), "utf-8")
    described = seal(folder, describe(graphs, records(folder)))
    bundle = Bundle.open(folder)
    sessions = Sessions(bundle)
    observed = observe(bundle, sessions.run_chain, sessions)
    (folder / "goldens.json").write_text(json.dumps(observed), "utf-8")
    return seal(folder, described, goldens="goldens.json")


def seal(folder: Path, described: Manifest, **changes: Any) -> Manifest:
    """Writes the manifest with the sizes and hashes of the files as they are now."""
    described = replace(described, files=records(folder), **changes)
    (folder / MANIFEST).write_text(manifest.dump(described), "utf-8")
    return described


def reseal(folder: Path) -> None:
    """Gives a changed folder a manifest that fits its files again, as one who attacks would."""
    value = json.loads((folder / MANIFEST).read_text("utf-8"))
    value["files"] = {name: vars(entry) for name, entry in records(folder).items()}
    (folder / MANIFEST).write_text(json.dumps(value), "utf-8")


def records(folder: Path) -> dict[str, FileRecord]:
    paths = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    return {path.name: FileRecord(path.stat().st_size, sha256(path)) for path in paths}


def _regions() -> TensorSpec:
    return tensor("regions", "batch", REGIONS, CHANNELS)


def _normalise(g: GraphMaker, vectors: str, name: str) -> None:
    length = g("ReduceL2", vectors, g.constant([1]), keepdims=1)
    g("Div", vectors, length, to=name)

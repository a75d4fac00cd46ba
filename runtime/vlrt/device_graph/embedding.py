"""Rows of an embedding that are columns of a product's int8 weights become our operator `EmbedInt8`."""

from __future__ import annotations

from vlrt.device_graph.model import DOMAIN, Model
from vlrt.device_graph.nodes import Node
from vlrt.device_graph.packing import packed_bytes_name

EMBED_INT8 = "EmbedInt8"

_FLOAT_KIND = 1


def replace_embeddings(model: Model) -> None:
    """Reads columns where a product's packed weights hold them, so that no second form of those need be read.

    Args:
        model: the graph, which is changed; its products were replaced before.
    """
    for node in model.nodes:
        if node.kind == "Gather" and node.whole("axis", 0) == 1:
            _replace(model, node)


def _replace(model: Model, gather: Node) -> None:
    """`Gather` of columns, `Cast`, `Mul` by scales gathered by the same ids, `Transpose`."""
    weight, ids = gather.inputs
    packed, values = packed_bytes_name(weight), model.constant(weight)
    cast = model.sole_reader(gather.outputs[0])
    scaled = model.sole_reader(cast.outputs[0]) if cast is not None else None
    turned = model.sole_reader(scaled.outputs[0]) if scaled is not None else None
    if values is None or packed not in model.tensors or cast is None or scaled is None or turned is None:
        return
    if cast.kind != "Cast" or cast.whole("to", 0) != _FLOAT_KIND or scaled.kind != "Mul":
        return
    if turned.kind != "Transpose" or turned.wholes("perm") != (1, 0):  # so ids have one axis
        return
    inner, columns = values.shape
    scales = _scales(model, scaled, cast.outputs[0], ids)
    row = model.constant(scales) if scales else None
    if row is None or row.shape != (columns,):
        return
    new = Node(EMBED_INT8, DOMAIN, (ids, packed, scales), (turned.outputs[0],), {"inner": inner, "columns": columns})
    model.replace([gather, cast, scaled, turned], new)


def _scales(model: Model, scaled: Node, floats: str, ids: str) -> str:
    """Name of the scales that a multiplication takes by `ids`; the empty text where it takes others."""
    found = model.producer(scaled.inputs[1] if scaled.inputs[0] == floats else scaled.inputs[0])
    if found is None or found.kind != "Gather" or found.whole("axis", 0) != 0 or found.inputs[1] != ids:
        return ""
    return found.inputs[0]

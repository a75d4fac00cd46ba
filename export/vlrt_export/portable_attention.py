"""ONNX Runtime's attention over in-place caches in plain ONNX, for engines that lack the operator."""

from __future__ import annotations

import onnx
from onnx import helper, inliner, parser

from vlrt.errors import VlrtError

OPERATOR = "GroupQueryAttention"
_DOMAIN = "vlrt.portable"
_INPUTS = 7
_KNOWN = {"num_heads", "kv_num_heads", "scale"}

_FUNCTION = """
<opset_import: ["" : {opset}], domain: "vlrt.portable">
{name} (query, key, value, past_key, past_value, last, total) => (mixed, present_key, present_value)
{{
  split = Constant <value_ints: ints = [0, 0, {heads}, -1]> ()
  join = Constant <value_ints: ints = [0, 0, -1]> ()
  zero = Constant <value_int: int = 0> ()
  one = Constant <value_int: int = 1> ()
  two = Constant <value_int: int = 2> ()
  axis_0 = Constant <value_ints: ints = [0]> ()
  axis_1 = Constant <value_ints: ints = [1]> ()
  axis_2 = Constant <value_ints: ints = [2]> ()
  axes_01 = Constant <value_ints: ints = [0, 1]> ()
  axes_13 = Constant <value_ints: ints = [1, 3]> ()
  factor_f = Constant <value_float: float = {scale}> ()
  lowest_f = Constant <value_float: float = -1000000000.0> ()
  factor = Cast <to = {kind}> (factor_f)
  lowest = Cast <to = {kind}> (lowest_f)

  q_rows = Reshape (query, split)
  k_rows = Reshape (key, split)
  v_rows = Reshape (value, split)
  q = Transpose <perm = [0, 2, 1, 3]> (q_rows)
  k = Transpose <perm = [0, 2, 1, 3]> (k_rows)
  v = Transpose <perm = [0, 2, 1, 3]> (v_rows)

  query_shape = Shape (query)
  cache_shape = Shape (past_key)
  width = Gather <axis = 0> (query_shape, one)
  positions = Gather <axis = 0> (cache_shape, two)
  place = Range (zero, positions, one)
  new = Range (zero, width, one)

  last_long = Cast <to = 7> (last)
  total_long = Cast <to = 7> (total)
  end = Add (last_long, one)
  begin = Sub (end, width)
  is_prompt = Equal (total_long, width)
  start = Where (is_prompt, zero, begin)
  start_column = Unsqueeze (start, axis_1)

  place_row = Unsqueeze (place, axis_0)
  offset = Sub (place_row, start_column)
  not_before = GreaterOrEqual (offset, zero)
  not_behind = Less (offset, width)
  is_new_flat = And (not_before, not_behind)
  is_new = Unsqueeze (is_new_flat, axes_13)
  most = Sub (width, one)
  at_least = Max (offset, zero)
  chosen_flat = Min (at_least, most)
  chosen_thin = Unsqueeze (chosen_flat, axes_13)
  chosen = Expand (chosen_thin, cache_shape)
  k_placed = GatherElements <axis = 2> (k, chosen)
  v_placed = GatherElements <axis = 2> (v, chosen)
  present_key = Where (is_new, k_placed, past_key)
  present_value = Where (is_new, v_placed, past_value)

  k_turned = Transpose <perm = [0, 1, 3, 2]> (present_key)
  products = MatMul (q, k_turned)
  scores = Mul (products, factor)
  new_row = Unsqueeze (new, axis_0)
  at = Add (start_column, new_row)
  at_column = Unsqueeze (at, axis_2)
  place_rows = Unsqueeze (place, axes_01)
  unseen_rows = Greater (place_rows, at_column)
  unseen = Unsqueeze (unseen_rows, axis_1)
  masked = Where (unseen, lowest, scores)
  weights = Softmax <axis = -1> (masked)
  mixed_heads = MatMul (weights, present_value)
  mixed_rows = Transpose <perm = [0, 2, 1, 3]> (mixed_heads)
  mixed = Reshape (mixed_rows, join)
}}
"""
"""New keys and values stand where the operator would write them; what is beyond a row's last token is never seen, and
finite in caches that begin as zeros."""


def make_portable(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph without the operator: present caches are then new tensors, not the past ones extended.

    Raises:
        VlrtError: a use of the operator that our graphs do not make.
    """
    caches = {info.name: info.type.tensor_type for info in model.graph.input}
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    known: dict[str, onnx.FunctionProto] = {}
    for node in model.graph.node:
        if node.op_type == OPERATOR:
            function = _function(node, caches, opset)
            known.setdefault(function.name, function)
            node.op_type, node.domain = function.name, _DOMAIN
            del node.attribute[:]
    if not known:
        return model
    model.functions.extend(known.values())
    model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    plain = inliner.inline_local_functions(model)
    used = {node.domain for node in plain.graph.node} | {""}
    kept = [entry for entry in plain.opset_import if entry.domain in used]
    del plain.opset_import[:]
    plain.opset_import.extend(kept)
    return plain


def _function(node: onnx.NodeProto, caches: dict[str, onnx.TypeProto.Tensor], opset: int) -> onnx.FunctionProto:
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    more = [name for name in node.input[_INPUTS:] if name]
    past = caches.get(node.input[3])
    if more or set(given) - _KNOWN or given["num_heads"] != given["kv_num_heads"] or past is None:
        what = f"`{OPERATOR}` is used with {', '.join(more) or sorted(given)}, which has no portable form here"
        raise VlrtError(what, "use `--device cuda:0` for this model")
    scale = given.get("scale") or past.shape.dim[3].dim_value ** -0.5
    # One function for each set of numbers; the graphs of a model have one or two.
    name = f"Attention_{given['num_heads']}_{past.elem_type}_{scale:.9g}".replace(".", "_").replace("-", "_")
    text = _FUNCTION.format(opset=opset, name=name, heads=given["num_heads"], scale=f"{scale:.9f}", kind=past.elem_type)
    return parser.parse_function(text)

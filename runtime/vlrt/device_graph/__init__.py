"""Graphs rewritten for the processor at hand, without an ONNX library: our operators in the place of others."""

from vlrt.device_graph.rewrite import VERSION, Counts, keeps_channels_apart, rewrite

__all__ = ["VERSION", "Counts", "keeps_channels_apart", "rewrite"]

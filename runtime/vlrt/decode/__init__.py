"""Autoregressive decoding: options, the loop's buffers, their binding to an engine, and `generate`."""

from vlrt.decode.binding import StepModel
from vlrt.decode.buffers import LoopShape, RowTensor, StepBuffers
from vlrt.decode.generate import decode, generate
from vlrt.decode.loop import Hypothesis, Loop, Task
from vlrt.decode.options import DecodeOptions
from vlrt.decode.scoring import score_continuations

__all__ = [
    "DecodeOptions",
    "Hypothesis",
    "Loop",
    "LoopShape",
    "RowTensor",
    "StepBuffers",
    "StepModel",
    "Task",
    "decode",
    "generate",
    "score_continuations",
]

"""Options that every `vlrt run` command takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_MODEL_OPTIONS = (
    click.option("--model", metavar="BUNDLE", help="Name or folder of a bundle.  [default: the task's own]"),
    click.option("--device", default="cpu", show_default=True, help="cpu, cuda:0, tensorrt:0, openvino:CPU, …"),
    click.option("--threads", type=click.IntRange(0), default=0, help="Threads of the CPU; 0 means all."),
)
_OUTPUT_OPTIONS = (
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object per input."),
    click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write JSON lines to FILE."),
)
_DECODE_OPTIONS = (
    click.option("--beams", "--num-beams", "num_beams", type=int, help="Beams of the search; 1 is greedy."),
    click.option("--n-best", "--num-return-sequences", "num_return_sequences", type=int, help="Results per input."),
    click.option("--rule", type=click.Choice(["hf", "classic"]), help="How the search stops and ranks."),
    click.option("--max-new-tokens", "--max-tokens", "max_new_tokens", type=int, help="Most tokens of a result."),
    click.option("--min-new-tokens", type=int, help="Fewest tokens of a result."),
    click.option("--length-penalty", type=float, help="Exponent of the length that a score is divided by."),
    click.option("--repetition-penalty", type=float, help="Divides the logits of tokens already said."),
    click.option("--no-repeat-ngram-size", type=int, help="No n tokens twice in this order."),
    click.option("--sample", "--do-sample", "do_sample", is_flag=True, default=None, help="Draw, do not search."),
    click.option("--temperature", type=float, help="Of sampling."),
    click.option("--top-k", type=int, help="Of sampling: among the k likeliest."),
    click.option("--top-p", type=float, help="Of sampling: among the likeliest of this mass."),
    click.option("--seed", type=int, help="Of sampling."),
)


def model_options(command: F) -> F:
    """Adds --model, --device and --threads."""
    for option in reversed(_MODEL_OPTIONS):
        command = option(command)
    return command


def output_options(command: F) -> F:
    """Adds --json and --out."""
    for option in reversed(_OUTPUT_OPTIONS):
        command = option(command)
    return command


def decode_options(command: F) -> F:
    """Adds the options of the search, by the names of `vlrt.decode.DecodeOptions` and transformers."""
    for option in reversed(_DECODE_OPTIONS):
        command = option(command)
    return command


def chosen_decoding(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the search's options that the user gave; sampling is plain unless beams were asked for too."""
    chosen = {name: value for name, value in given.items() if value is not None}
    return {"num_beams": 1} | chosen if chosen.get("do_sample") else chosen

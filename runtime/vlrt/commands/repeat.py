"""The command that makes a picture again, from what its file says."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

_INPUTS = {"edit": ("photograph",), "inpaint": ("photograph", "mask"), "upscale": ("photograph",)}
_INPUTS |= {"variations": ("photograph",), "interpolate": ("photograph", "other"), "generate": ()}
_PROMPTED = ("generate", "edit", "inpaint", "upscale")
_BY_STAGE = ("steps", "guidance", "scheduler")
_SIZED = ("generate", "edit", "inpaint", "variations", "interpolate")
_OPTIONS = {
    **{name: f"--{name}" for name in ("negative", "seed", "eta", "label", "strength", "frames", "device")},
    **{name: f"--{name}" for name in ("from", "to", "theta", "candidates", "keep", "rank", "complete", "rows")},
    "guidance_rescale": "--guidance-rescale",
    "gradient_guidance": "--gradient-guidance",
    "temperature": "--temperature",
    "top_k": "--top-k",
    "top_p": "--top-p",
}
_FLAGS = {"tiled": ("--tiled", "--whole"), "two_pass": ("--two-pass", "--one-pass"), "greedy": ("--greedy", "")}


def repeat_command(parameters: Mapping[str, Any]) -> str:
    """The command line, quoted for a shell; without a place for the picture, which gets one of its own.

    Inputs that were no files are named in capitals, for nobody knows where they are.
    """
    task = str(parameters.get("task"))
    given = [str(parameters.get(name, name.upper())) for name in _INPUTS.get(task, ())]
    if task in _PROMPTED and parameters.get("prompt"):
        given.append(str(parameters["prompt"]))
    words = ["--model", str(parameters.get("model") or parameters.get("bundle", "BUNDLE"))]
    for name in _BY_STAGE:
        if name in parameters:
            words += [f"--{name}", _by_stage(parameters[name])]
    for name, option in _OPTIONS.items():
        value = parameters.get(name)
        if value is not None and value != "":
            words += [option, _text(value)]
    for name, (yes, no) in _FLAGS.items():
        if name in parameters:
            words += filter(None, [yes if parameters[name] else no])
    if "guidance_interval" in parameters:
        words += ["--guidance-interval", ",".join(map(_text, parameters["guidance_interval"]))]
    if task in _SIZED:
        words += [
            part
            for name in ("height", "width")
            if name in parameters
            for part in (f"--{name}", _text(parameters[name]))
        ]
    if task in ("variations", "interpolate") and parameters.get("prompt"):
        words += ["--prompt", str(parameters["prompt"])]
    if "pictures" in parameters and task != "interpolate" and "keep" not in parameters:
        words += ["--count", _text(parameters["pictures"])]
    # What looks like an option is none after two dashes.
    dashed = any(word.startswith("-") for word in given)
    return shlex.join(["vlrt", "run", task, *([*words, "--", *given] if dashed else [*given, *words])])


def _by_stage(value: Any) -> str:
    if not isinstance(value, Mapping):
        return _text(value)
    if len(value) == 1:
        return _text(next(iter(value.values())))
    return ",".join(f"{stage}={_text(one)}" for stage, one in value.items())


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, (int, float)) else str(value)

"""`vlrt export`: the exporter's only door. Imports torch when it runs, not before."""

from __future__ import annotations

import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlrt import zoo
from vlrt.bundle import MANIFEST, Bundle
from vlrt.errors import UsageError, VlrtError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vlrt.manifest import Manifest
    from vlrt_export.gate import Wish

_CLIP_PROMPTS = "clip-prompts"
_NEEDED = ("torch", "onnx", "onnxscript", "safetensors", "huggingface_hub", "onnxruntime", "transformers")


@click.command(short_help="Trace a model to a bundle and prove it against torch.")
@click.argument("name")
@click.option("--source", metavar="CHECKPOINT", help="Hub id, local folder, or a checkpoint file.")
@click.option("--random", is_flag=True, help="The architecture with random weights, for latency work.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of the random weights.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder of the bundle.  [default: VLRT_HOME/NAME]"
)
@click.option("--force", is_flag=True, help="Replace the bundle at the output folder.")
@click.option("--encoder", help="Image encoder of a captioner: vgg16, vgg19, googlenet, resnet101, efficientnet-lite2.")
@click.option("--attention", help="Attention of a captioner: soft, hard or hard-sampled.")
@click.option(
    "--data", type=click.Path(), help="Of a captioner: photographs with captions, to admit it by BLEU and CIDEr."
)
@click.option("--tokenizer", type=click.Path(), help="Tokenizer file or folder, where the checkpoint has none.")
@click.option("--clip", metavar="CHECKPOINT", help="Of ClipCap: the CLIP whose image tower it was trained on.")
@click.option("--codec", metavar="CHECKPOINT", help="Of DALL-E: the codec that paints what it draws.")
@click.option("--decoder", help="Of Stable Diffusion: a consistency decoder, `consistency` or a folder of one.")
@click.option("--image-encoder", metavar="CHECKPOINT", help="Of unCLIP: the pipeline for variations of photographs.")
@click.option("--super-resolution", metavar="CHECKPOINT", help="Of IF: the pipeline of its second stage.")
@click.option("--upscaler", metavar="CHECKPOINT", help="Of IF: Stable Diffusion's x4 upscaler as its third stage.")
@click.option("--activation", help="Of a CLIP state dict in OpenAI's layout: quick_gelu (the original's) or gelu.")
@click.option("--position", type=click.Choice(["end", "middle", "front"]), help="Of clip-prompts: the label's place.")
@click.option("--labels-file", type=click.Path(path_type=Path), help="Of clip-prompts: labels in training order.")
@click.option("--via", type=click.Choice(["optimum"]), help="Let Optimum export a hub id or folder that has no family.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8", "int4", "auto"]),
    default="fp32",
    show_default=True,
    help="Of the arithmetic (fp16: of the storage); a reduced one is written only if it is as good and faster.",
)
@click.option(
    "--smaller", type=float, help="Admit what is smaller by this factor instead, even where it is not faster."
)
@click.option(
    "--calibration", type=click.Path(path_type=Path), help="Folder of photographs to find and judge --precision by."
)
@click.option(
    "--target",
    "engine",
    type=click.Choice(["cuda", "tensorrt"]),
    help="Of an exported bundle: write it in fp16 for GPUs, or build TensorRT's engines for this machine.",
)
@click.option("--profile", "profiles", multiple=True, metavar="AXIS=MIN:USUAL:MAX,…", help="Of --target: sizes.")
@click.option("--json", "as_json", is_flag=True, help="Print the parity certificate as JSON.")
def export(name: str, output: Path | None, force: bool, as_json: bool, via: str | None, **choices: Any) -> None:
    """Trace the model NAME (see `vlrt models`) to ONNX, prove every graph against torch, write one bundle.

    The name clip-prompts converts CoOp's learned prompts instead: --source CHECKPOINT -o FILE.npz. With --via, NAME is
    a hub id or folder. With --precision, --source may also be an fp32 bundle; with --target it is the bundle.
    """
    engine, profiles = choices.pop("engine"), choices.pop("profiles")
    if profiles and engine != "tensorrt":
        raise UsageError("`--profile` goes with an engine", "add `--target tensorrt`")
    if engine == "tensorrt":
        _check_target(engine, {**choices, "via": via, "output": output, "force": force})
        _build_engines(name, choices["source"], profiles, as_json)
        return
    _need_libraries()
    if engine == "cuda":
        _check_target(engine, {**choices, "via": via})
        _write_for_cuda(name, choices["source"], output, force, as_json)
        return
    precision, smaller, calibration = (choices.pop(key) for key in ("precision", "smaller", "calibration"))
    position, labels_file = choices.pop("position"), choices.pop("labels_file")
    if precision != "fp32" and (name == _CLIP_PROMPTS or via is not None):
        what = f"`--precision {precision}` does not go with `{'--via' if via else name}`"
        raise UsageError(what, "leave it out; what others export is reduced by their own tools")
    if name == _CLIP_PROMPTS:
        _convert_prompts(choices["source"], output, position or "end", labels_file, force)
        return
    if via is not None:
        _wrap(choices["source"] or name, output, force, as_json)
        return
    from vlrt_export.bundle_writer import check_target, write_bundle
    from vlrt_export.request import Request, build

    entry = zoo.entry(name)
    target = output or zoo.home() / (name if precision == "fp32" else f"{name}-{precision}")
    check_target(target, force)
    source, random, seed = (choices.pop(key) for key in ("source", "random", "seed"))
    written = _fp32_bundle(source) if precision != "fp32" else None
    made_up = random or (written is not None and written.manifest.source.origin == "random")
    wish = _wish(entry, precision, smaller, calibration, made_up)
    if wish is not None and written is not None:
        from vlrt_export.bundle_writer import reduce_bundle

        started = time.monotonic()
        manifest = reduce_bundle(written, target, wish, force=force, progress=lambda line: _say(f"{line} …"))
        _report(manifest, target, time.monotonic() - started, as_json)
        return
    given = {key: value for key, value in choices.items() if value is not None}
    bundle_name = target.name if output or wish else name
    request = Request(
        bundle_name, entry, source or (None if random else entry.source or None), random, seed, entry.options | given
    )
    started = time.monotonic()
    plan = build(request)
    manifest = write_bundle(plan, target, force=force, progress=lambda line: _say(f"{line} …"), wish=wish)
    _report(manifest, target, time.monotonic() - started, as_json)


def _check_target(engine: str, given: Mapping[str, Any]) -> None:
    """Refuses options that would be ignored: an engine is made of what another export has decided."""
    for option, value in given.items():
        if option != "source" and value not in (None, 0, "fp32"):  # false is 0 too
            what = (
                f"`--{option.replace('_', '-')}` does not go with `--target {engine}`, which takes an exported bundle"
            )
            raise UsageError(what, f"leave it out, or export first; then `--source BUNDLE --target {engine}`")


def _write_for_cuda(name: str, source: str | None, output: Path | None, force: bool, as_json: bool) -> None:
    from vlrt_export.cuda_bundle import write_cuda_bundle

    target, started = output or zoo.home() / f"{name}-cuda", time.monotonic()
    bundle = Bundle.open(zoo.find(source or name))
    manifest = write_cuda_bundle(bundle, target, force=force, progress=lambda line: _say(f"{line} …"))
    _report(manifest, target, time.monotonic() - started, as_json)


def _build_engines(name: str, source: str | None, profiles: Sequence[str], as_json: bool) -> None:
    """Builds TensorRT engines of a bundle; torch is not needed for it."""
    if find_spec("onnx") is None:
        raise VlrtError("building engines needs `onnx`, not installed here", "pip install onnx")
    from vlrt_export.tensorrt import Wish, build_engines, parse_profile

    bundle = Bundle.open(zoo.find(source or name))
    wish = Wish([parse_profile(text) for text in profiles] or [{}], progress=lambda line: _say(f"{line} …"))
    started = time.monotonic()
    built = build_engines(bundle, wish)
    if as_json:
        import json

        click.echo(json.dumps({"engines": [str(path) for path in built]}))
        return
    click.echo(
        f"{bundle.name}: {len(built)} engines, {time.monotonic() - started:.0f} s; prove them with "
        f"`vlrt verify {bundle.path} --device tensorrt:0`"
    )


def _fp32_bundle(source: str | None) -> Bundle | None:
    """The bundle that `--source` names, if it is one, to be reduced without its checkpoint."""
    folder = Path(source) if source else None
    if folder is None or not (folder / MANIFEST).is_file():
        return None
    return Bundle.open(folder)


def _wish(
    entry: zoo.Entry, precision: str, smaller: float | None, calibration: Path | None, random: bool
) -> Wish | None:
    """What `--precision` and its options ask for.

    Raises:
        UsageError: options without a reduced precision, or nothing to judge it by.
    """
    if precision == "fp32":
        if smaller is not None or calibration is not None:
            raise UsageError("`--smaller` and `--calibration` go with a reduced precision", "add `--precision int8`")
        return None
    from vlrt_export.calibration import read_calibration, synthetic
    from vlrt_export.gate import Wish

    if calibration is None and not random:
        hint = "--calibration DIR: photographs like those that the model will see, fifty to a few hundred"
        raise UsageError(f"`--precision {precision}` is judged by photographs, and none were given", hint)
    data = synthetic() if calibration is None else read_calibration(calibration)
    for name in data.skipped:
        _say(f"`{name}` cannot be read and is left out")
    limits = zoo.zoo().gate
    own = {name: value for name, value in entry.tolerances.items() if name in limits}
    return Wish(precision, data, limits | own, smaller or 0.0)


def _wrap(source: str, output: Path | None, force: bool, as_json: bool) -> None:
    from vlrt_export.via_optimum import export_via_optimum

    target = output or zoo.home() / Path(source.partition("@")[0]).name
    started = time.monotonic()
    manifest = export_via_optimum(source, target, force=force, progress=lambda line: _say(f"{line} …"))
    _report(manifest, target, time.monotonic() - started, as_json)


def _convert_prompts(
    source: str | None, output: Path | None, position: str, labels_file: Path | None, force: bool
) -> None:
    from vlrt_export.clip_prompts import convert_prompts

    if source is None or output is None:
        raise UsageError(f"`{_CLIP_PROMPTS}` needs `--source` and `-o`", "--source model.pth.tar-50 -o ctx.npz")
    prompts = convert_prompts(source, output, position, labels_file, force)
    click.echo(f"{output}: learned vectors {list(prompts.vectors.shape)}, the label at the {prompts.position}")


def _need_libraries() -> None:
    missing = [package for package in _NEEDED if find_spec(package) is None]
    if missing:
        what = f"exporting needs {', '.join(f'`{m}`' for m in missing)}, not installed here"
        raise VlrtError(what, "pip install 'vlrt[export]'")


def _say(line: str) -> None:
    click.echo(line, err=True)


def _report(manifest: Manifest, target: Path, seconds: float, as_json: bool) -> None:
    if as_json:
        import json

        from vlrt import record

        value = {"bundle": str(target), "seconds": round(seconds, 2), "certificate": record.write(manifest.certificate)}
        click.echo(json.dumps(value))
        return
    size = sum(entry.bytes for entry in manifest.files.values())
    for line in manifest.certificate:
        bound = "at most" if line.better == "lower" else "at least"
        click.echo(f"  {line.stage:32} {line.metric}: {line.value:.4g} ({bound} {line.limit:.4g})")
    click.echo(
        f"{target}: {len(manifest.graphs)} graphs, {size / 1e6:.1f} MB, {seconds:.0f} s; all within their limits"
    )
    sys.stdout.flush()

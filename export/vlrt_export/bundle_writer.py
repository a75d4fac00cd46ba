"""Writing a bundle: staging folder, graphs, parity, manifest last, one rename."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnx

import vlrt
from vlrt import manifest
from vlrt.bundle import MANIFEST, Bundle, sha256
from vlrt.engines import Sessions
from vlrt.errors import VlrtError
from vlrt.manifest import FileRecord, GraphSpec, Manifest, Measurement, TensorSpec
from vlrt.verify import observe
from vlrt_export.external_data import MappedWeights, move_weights, places, weight_bytes
from vlrt_export.gate import Gate, Wish, install
from vlrt_export.goldens import FILE, write_goldens, write_observed
from vlrt_export.graph import Check, Graph, Plan
from vlrt_export.parity import admit, measure_graph
from vlrt_export.precision import store_exact_halves
from vlrt_export.trace import signature, trace, trace_large

Progress = Callable[[str], None]

EXTERNAL_ABOVE = 512 << 20
"""Bytes of weights beyond which a graph keeps them in a file beside it; a protobuf file ends at 2 GiB."""


def write_bundle(
    plan: Plan,
    target: Path,
    *,
    force: bool = False,
    progress: Progress = lambda line: None,
    wish: Wish | None = None,
) -> Manifest:
    """Traces, proves and writes everything of a plan; `target` appears whole or not at all.

    Args:
        target: the bundle's folder; must not exist unless `force`.
        force: replace an existing bundle (and only a bundle) at `target`.
        progress: told each stage in a few words.
        wish: the reduced precision to write the proven graphs in; `None` for fp32.

    Raises:
        VlrtError: the target exists or cannot be written, the disk is full, parity fails, or the gate does not admit
            the reduced precision.
    """
    check_target(target, force)
    with _staging(target) as folder:
        described = _write_files(plan, folder, progress)
        certificate = _prove(plan, folder, progress)
        described = replace(described, certificate=tuple(certificate), goldens=FILE, files=_records(folder))
        if wish is not None:
            described = _reduce(folder, described, wish, progress)
        _write_manifest(folder, described)
        Bundle.open(folder)
        _publish(folder, target)
    return described


def reduce_bundle(
    source: Bundle, target: Path, wish: Wish, *, force: bool = False, progress: Progress = lambda line: None
) -> Manifest:
    """Writes a bundle of ours in reduced precision, without its checkpoint; arguments as for `write_bundle`.

    Raises:
        VlrtError: as `write_bundle`, or the bundle is not in fp32 or not ours.
    """
    check_target(target, force)
    described = source.manifest
    if source.is_foreign or any(graph.precision != "fp32" for graph in described.graphs.values()):
        raise VlrtError(f"`{source.name}` is not a bundle of ours in fp32", "reduce the fp32 export instead")
    with _staging(target) as folder:
        for name in described.files:
            shutil.copyfile(source.file(name), folder / name)
        described = _reduce(folder, replace(described, name=target.name), wish, progress)
        _write_manifest(folder, described)
        Bundle.open(folder)
        _publish(folder, target)
    return described


def derive_bundle(
    source: Bundle,
    target: Path,
    change: Callable[[Path, Manifest], Manifest],
    prove: Callable[[Bundle], Manifest],
    *,
    force: bool = False,
) -> Manifest:
    """Writes a bundle with other graphs than the one in fp32 that it is made of, and with the same goldens.

    Args:
        change: changes the files in a folder and tells what they are then.
        prove: measures the changed bundle and adds to its certificate.

    Raises:
        VlrtError: as `write_bundle`, or the source is not in fp32 or not ours.
    """
    check_target(target, force)
    described = source.manifest
    if source.is_foreign or any(graph.precision != "fp32" for graph in described.graphs.values()):
        raise VlrtError(f"`{source.name}` is not a bundle of ours in fp32", "make it of the fp32 export instead")
    with _staging(target) as folder:
        for name in described.files:
            shutil.copyfile(source.file(name), folder / name)
        described = change(folder, replace(described, name=target.name, created_by=_versions()))
        _write_manifest(folder, replace(described, files=_records(folder)))
        _write_manifest(folder, described := prove(Bundle.open(folder)))
        Bundle.open(folder)
        _publish(folder, target)
    return described


def _reduce(folder: Path, described: Manifest, wish: Wish, progress: Progress) -> Manifest:
    """Replaces graphs by what the gate admits, and the goldens by what the bundle gives then."""
    _write_manifest(folder, described)
    candidates, lines = Gate(folder, described, wish, progress).admit()
    proven = [replace(line, stage=f"fp32, {line.stage}") for line in described.certificate]
    described = install(candidates, folder, described)
    described = replace(described, certificate=(*proven, *lines), files=_records(folder), created_by=_versions())
    _write_manifest(folder, described)
    bundle = Bundle.open(folder)
    sessions = Sessions(bundle)
    write_observed(folder, observe(bundle, sessions.run_chain, sessions))
    return replace(described, files=_records(folder))


def wrap_files(
    described: Manifest,
    places: Mapping[str, Path],
    checks: Sequence[Check],
    target: Path,
    *,
    force: bool = False,
    progress: Progress = lambda line: None,
) -> Manifest:
    """Writes graphs that another exporter made as a bundle with hashes, certificate and goldens.

    Args:
        described: what the bundle holds; its file records are made anew.
        places: paths of its files by plain name.
        checks: the rungs that the graphs are held to, all of them against the original model.
        target, force, progress: as for `write_bundle`.

    Raises:
        VlrtError: as `write_bundle`.
    """
    check_target(target, force)
    with _staging(target) as folder:
        for name, path in places.items():
            shutil.copyfile(path, folder / name)
        described = replace(described, files=_records(folder), created_by=_versions())
        _write_manifest(folder, described)
        bundle = Bundle.open(folder)
        certificate = _climb(checks, folder, progress)
        sessions = Sessions(bundle)
        write_observed(folder, observe(bundle, sessions.run_chain, sessions))
        described = replace(described, certificate=tuple(certificate), goldens=FILE, files=_records(folder))
        _write_manifest(folder, described)
        Bundle.open(folder)
        _publish(folder, target)
    return described


def check_target(target: Path, force: bool) -> None:
    """Refuses early, before minutes of tracing, what could not be written at the end."""
    if target.exists() or target.is_symlink():
        if not force:
            raise VlrtError(f"`{target}` already exists", "use --force to replace it, or another folder with -o")
        if target.is_symlink() or not (target / MANIFEST).is_file():
            raise VlrtError(f"`{target}` is not a bundle, so it is not replaced", "choose another folder with -o")


@contextlib.contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A hidden folder beside the target (same file system, so that the rename is atomic); removed on any exit."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise VlrtError(f"`{target.parent}` cannot be written: {error.strerror}", "choose another with -o") from None
    folder.chmod(0o755)
    try:
        yield folder
    except OSError as error:
        what = f"writing `{target}` failed: {error.strerror or error}"
        raise VlrtError(what, "free some space or choose another folder with -o; nothing was left behind") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, target: Path) -> None:
    """Renames the staged folder to the target; an old bundle is moved aside first and back if that fails."""
    if not target.exists():
        os.rename(folder, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    os.rename(target, old / "bundle")
    try:
        os.rename(folder, target)
    except BaseException:
        os.rename(old / "bundle", target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _write_files(plan: Plan, folder: Path, progress: Progress) -> Manifest:
    graphs = {}
    for graph in plan.graphs:
        progress(f"tracing {graph.role}")
        graphs[graph.role] = write_graph(graph, folder)
    for name, content in plan.files.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            shutil.copyfile(content, folder / name)
    described = Manifest(
        schema=manifest.SCHEMA,
        name=plan.name,
        family=plan.family,
        tasks=tuple(plan.tasks),
        source=plan.source,
        files=_records(folder),
        graphs=graphs,
        image=plan.image,
        text=plan.text,
        decode=plan.decode,
        embed=plan.embed,
        answer=plan.answer,
        match=plan.match,
        instruction=plan.instruction,
        codec=plan.codec,
        image_tokens=plan.image_tokens,
        diffusion=plan.diffusion,
        created_by=_versions(),
        card=plan.card,
        extra=dict(plan.extra),
    )
    _write_manifest(folder, described)
    return described


def write_graph(graph: Graph, folder: Path) -> GraphSpec:
    file, external = f"{graph.role}.onnx", f"{graph.role}.bin"
    large = weight_bytes(graph.module) > EXTERNAL_ABOVE
    if large:
        model, halves = _trace_beside(graph, folder / external)
    else:
        model = trace(graph)
        halves = store_exact_halves(model)
    onnx.save_model(model, folder / file)
    return GraphSpec(
        file=file,
        precision="fp32",
        inputs=tuple(TensorSpec(info.name, *signature(info)) for info in model.graph.input),
        outputs=tuple(TensorSpec(info.name, *signature(info)) for info in model.graph.output),
        external=(external,) if large else (),
        storage="fp16" if halves else "",
    )


def _trace_beside(graph: Graph, external: Path) -> tuple[onnx.ModelProto, bool]:
    """Traces a large graph; its weights go to the file `external`, and out of memory: the module's are mapped then."""
    with tempfile.TemporaryDirectory(prefix=".", dir=external.parent, ignore_cleanup_errors=True) as scratch:
        model = trace_large(graph, Path(scratch))
        graph.mapped.append(MappedWeights(Path(scratch, "weights"), places(model)))
        halves = move_weights(model, Path(scratch), external)
    graph.mapped[-1].replace(graph.module)
    return model, halves


def _prove(plan: Plan, folder: Path, progress: Progress) -> list[Measurement]:
    """Climbs the parity ladder on the staged files, stops at the first rung that breaks, then stores goldens."""
    bundle = Bundle.open(folder)
    certificate: list[Measurement] = []
    for graph in plan.graphs:
        progress(f"proving {graph.role} against torch")
        # Sessions of one graph only: those of a large model do not fit into memory together with its modules.
        certificate += measure_graph(graph, Sessions(bundle))
        admit(certificate)
    certificate += _climb(plan.checks, folder, progress)
    write_goldens(plan, folder, bundle, Sessions(bundle))
    return certificate


def _climb(checks: Iterable[Check], folder: Path, progress: Progress) -> list[Measurement]:
    certificate: list[Measurement] = []
    for check in checks:
        progress(f"proving {getattr(check, '__name__', 'the family').replace('_', ' ')}")
        certificate += check(folder)
        admit(certificate)
        # Loops and their models refer to each other, and with them sessions as large as the model.
        gc.collect()
    return certificate


def _records(folder: Path) -> dict[str, FileRecord]:
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    return {path.name: FileRecord(path.stat().st_size, sha256(path)) for path in files}


def _write_manifest(folder: Path, described: Manifest) -> None:
    temporary = folder / f"{MANIFEST}.part"
    with open(temporary, "w", encoding="utf-8") as stream:
        stream.write(manifest.dump(described))
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, folder / MANIFEST)


def _versions() -> dict[str, str]:
    found = {"vlrt": vlrt.__version__}
    for package in ("torch", "onnx", "onnxscript", "onnxruntime", "transformers", "diffusers", "optimum-onnx"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found

"""What all tests share: folders of their own, photographs made in code, a tiny bundle, and the development data."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; the machine is shared

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

HERE = Path(__file__).parent
_MISSING = pytest.StashKey[list[str]]()


def shared_folder() -> Path:
    """Development data too large for the repository: `VLRT_SHARED`, or `shared` beside the repository."""
    return Path(os.environ.get("VLRT_SHARED") or HERE.parents[1] / "shared")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of the development data are taken out where it is absent, and the summary names them."""
    absent = [] if shared_folder().is_dir() else [i for i in items if "shared_dir" in getattr(i, "fixturenames", ())]
    if absent:
        items[:] = [item for item in items if item not in absent]
        config.hook.pytest_deselected(items=absent)
    config.stash[_MISSING] = [item.nodeid for item in absent]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tracing is made quick as soon as a test may trace; see tests/quick_tracing.py."""
    if "vlrt_export.trace" in sys.modules:
        _quicken_tracing()


@functools.cache
def _quicken_tracing() -> None:
    _load_beside("quick_tracing").quicken()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker tells the process that writes the summary."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["missing"] = session.config.stash.get(_MISSING, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every worker collects all tests, so that any one's word is enough."""
    node.config.stash[_MISSING] = getattr(node, "workeroutput", {}).get("missing", [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    names = config.stash.get(_MISSING, [])
    if names:
        terminalreporter.section("not run", sep="=", yellow=True)
        terminalreporter.line(f"{len(names)} tests need the development data, and `{shared_folder()}` is not there;")
        terminalreporter.line("name its folder in VLRT_SHARED. They are:")
        for name in names:
            terminalreporter.line(f"  {name}")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of the development data; tests that ask for it are not run where it is absent."""
    return shared_folder()


@pytest.fixture(scope="session", autouse=True)
def isolated_folders() -> Iterator[Path]:
    """No test sees, or leaves anything in, the user's own bundles and caches; subprocesses inherit that."""
    root = Path(tempfile.mkdtemp(prefix="vlrt-tests."))
    before = {name: os.environ.get(name) for name in ("VLRT_HOME", "VLRT_CACHE")}
    os.environ["VLRT_HOME"], os.environ["VLRT_CACHE"] = str(root / "home"), str(root / "cache")
    yield root
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module that makes tiny bundles; see `tiny_bundles.py`."""
    return _load_beside("tiny_bundles")


@pytest.fixture(scope="session")
def fake_device() -> ModuleType:
    """A device's memory that is not the host's; see tests/fake_device.py."""
    return _load_beside("fake_device")


@pytest.fixture(scope="session")
def fake_tensorrt() -> ModuleType:
    """TensorRT's API over ONNX Runtime; see tests/fake_tensorrt.py."""
    return _load_beside("fake_tensorrt")


@pytest.fixture(scope="session")
def reweighed() -> ModuleType:
    """The module that gives exported graphs other weights; see `reweighed.py`."""
    return _load_beside("reweighed")


@pytest.fixture(scope="session")
def seeded() -> ModuleType:
    """The module that makes weights of names and shapes; see `seeded_weights.py`."""
    return _load_beside("seeded_weights")


@pytest.fixture(scope="session")
def kernel_twins() -> ModuleType:
    """What the kernels compute, in NumPy, and graphs that run them; see `kernel_twins.py`."""
    return _load_beside("kernel_twins")


@pytest.fixture(scope="session")
def dalle_models() -> ModuleType:
    """The module with DALL-E's golden models; see `dalle_models.py`."""
    return _load_beside("dalle_models")


@pytest.fixture(scope="session")
def diffusers_folders() -> ModuleType:
    """The module that makes tiny pipelines in diffusers' layout; see `diffusers_folders.py`."""
    return _load_beside("diffusers_folders")


@contextlib.contextmanager
def _made_once(factory: pytest.TempPathFactory, name: str) -> Iterator[tuple[Path, bool]]:
    """A folder that all test processes share, and whether it is already made; the first to come makes it."""
    root = factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / name
    with open(folder.with_name(f"{name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = folder.with_name(f"{name}.made")
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        yield folder, made.exists()
        made.touch()


@pytest.fixture(scope="session")
def stable_diffusion(diffusers_folders: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny Stable Diffusion in diffusers' layout, and the bundle made of it. Do not change them."""
    with _made_once(tmp_path_factory, "stable-diffusion") as (folder, made):
        if not made:
            diffusers_folders.write_stable_diffusion(folder / "source", diffusers_folders.unet())
            diffusers_folders.export("stable-diffusion", folder / "source", folder / "bundle")
    return folder / "source", folder / "bundle"


@pytest.fixture(scope="session")
def small_codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle `small-codec`: a VQ-VAE of 16 codes of 4x4 pixels, random weights of seed 0. Do not change it."""
    import torch

    from vlrt.zoo import Entry
    from vlrt_export.bundle_writer import write_bundle
    from vlrt_export.families import vq_vae
    from vlrt_export.request import Request

    torch.set_num_threads(1)
    sizes = {"hidden": 8, "residual": 4, "blocks": 1, "width": 4, "codebook": 16}
    entry = Entry("vq-vae", ("tokenize", "detokenize", "reconstruct"), "")
    with _made_once(tmp_path_factory, "codec") as (folder, made):
        target = folder / "small-codec"
        if not made:
            write_bundle(vq_vae.build(Request("small-codec", entry, random=True, options={"sizes": sizes})), target)
    return target


@pytest.fixture(scope="session")
def tiny_bundle_folder(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole bundle of five graphs with random weights that captions, matches and searches. Do not change it."""
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    tiny.write_bundle(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_diffusion(tiny: ModuleType) -> ModuleType:
    """The module that makes tiny bundles that paint; see `tiny_diffusion.py`."""
    return _load_beside("tiny_diffusion")


@pytest.fixture(scope="session")
def latent_bundle(tiny_diffusion: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latent diffusion of 16x16 pixels: generates, edits, inpaints. Do not change it."""
    return Path(tiny_diffusion.latent(tmp_path_factory.mktemp("bundles") / "latent"))


@pytest.fixture(scope="session")
def cascade_bundle(tiny_diffusion: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior, a decoder and an upsampler to 16x16 pixels: generates, varies, interpolates, upscales."""
    return Path(tiny_diffusion.cascade(tmp_path_factory.mktemp("bundles") / "cascade"))


@pytest.fixture(scope="session")
def classes_bundle(tiny_diffusion: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pixels of 8x8 of one of five classes: generates. Do not change it."""
    return Path(tiny_diffusion.classes(tmp_path_factory.mktemp("bundles") / "classes"))


@pytest.fixture
def tiny_copy(tiny_bundle_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that a test may damage."""
    return Path(shutil.copytree(tiny_bundle_folder, tmp_path / "tiny"))


@pytest.fixture(scope="session")
def photograph() -> Callable[..., Image.Image]:
    """Makes an RGB picture of any size; equal seeds give equal pictures."""

    def make(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
        noise = np.random.default_rng(seed).integers(0, 256, (max(1, height // 4), max(1, width // 4), 3), np.uint8)
        return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)

    return make


@pytest.fixture
def photographs(photograph: Callable[..., Image.Image], tmp_path: Path) -> Path:
    """A folder of three photographs of different formats, one of them in a subfolder, beside a file that is none."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    photograph(seed=1).save(folder / "a.jpg")
    photograph(50, 50, seed=2).save(folder / "b.png")
    photograph(30, 60, seed=3).save(folder / "more" / "c.webp")
    (folder / "notes.txt").write_text("not a photograph", "utf-8")
    return folder


def _load_beside(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module

"""Who imports whom, seen in fresh interpreters; the layers themselves are checked in `test_style.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

TRAINING = ("torch", "onnx", "onnxscript", "transformers", "safetensors", "huggingface_hub", "vlrt_export")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | environment,
    )


def modules_of(code: str) -> set[str]:
    """Names of the modules that code has brought into a fresh interpreter."""
    done = python(textwrap.dedent(code) + "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))")
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def imported_by(code: str) -> set[str]:
    """Top-level names of the modules that code has brought into a fresh interpreter."""
    return {name.partition(".")[0] for name in modules_of(code)}


def test_importing_vlrt_costs_nothing() -> None:
    """No NumPy, no engine, no command line: they come with what needs them."""
    found = imported_by("import vlrt; vlrt.VlrtError, vlrt.__version__")
    assert not found & {"numpy", "onnxruntime", "PIL", "tokenizers", "yaml", "click", *TRAINING}


def test_the_command_line_itself_is_light() -> None:
    found = imported_by(
        """
        from vlrt.cli import main
        try: main(["--help"])
        except SystemExit: pass
        try: main(["run", "--help"])
        except SystemExit: pass
        """
    )
    assert not found & {"numpy", "onnxruntime", "PIL", "tokenizers", *TRAINING}


@pytest.mark.parametrize(
    "call",
    [
        'load("caption", bundle)(photo).text',
        'load("match", bundle)(photo, ["a dog", "a cat"])',
        'load("search", bundle).index([Path(photo)], Path(photo).with_name("i.npz"))',
    ],
)
def test_tasks_run_without_training_libraries(call: str, tiny_bundle_folder: Path, photographs: Path) -> None:
    found = imported_by(
        f"""
        from pathlib import Path
        from vlrt import load
        bundle, photo = {str(tiny_bundle_folder)!r}, {str(photographs / "a.jpg")!r}
        {call}
        """
    )
    assert {"vlrt", "numpy", "onnxruntime", "PIL"} <= found
    assert not found & set(TRAINING)


def test_a_caption_imports_nothing_that_it_does_not_need(tiny_bundle_folder: Path, photographs: Path) -> None:
    """A process lives half a second: every module that is not needed would be felt."""
    caption = ["run", "caption", str(photographs / "a.jpg"), "--model", str(tiny_bundle_folder)]
    found = modules_of(
        f"""
        from vlrt.cli import main
        try: main({caption!r})
        except SystemExit as exit_: assert not exit_.code, exit_.code
        """
    )
    unneeded = {"vlrt.diffusion", "vlrt.codec", "vlrt.drawing", "vlrt.benchmark", "vlrt.embedding", "vlrt.tasks.draw"}
    assert {"vlrt.tasks.caption", "vlrt.decode", "vlrt.image"} <= found
    assert not found & {*unneeded, "yaml", "importlib.resources", "asyncio", "PIL.ImageDraw", "PIL.TiffImagePlugin"}


def test_graphs_load_before_what_the_first_photograph_needs_is_imported(tiny_bundle_folder: Path) -> None:
    found = modules_of(
        f"""
        import sys
        import vlrt.engines as engines
        seen, real = [], engines.Sessions.prepare
        def prepare(self, roles):
            seen.append(set(sys.modules))
            real(self, roles)
        engines.Sessions.prepare = prepare
        from vlrt import load
        captioner = load("caption", {str(tiny_bundle_folder)!r})
        captioner.sessions.get("image_encoder")
        sys.modules = {{name: None for name in seen[0]}}
        """
    )
    assert "vlrt.tasks.caption" in found
    assert not {name.partition(".")[0] for name in found} & {"PIL", "tokenizers"}
    assert not found & {"vlrt.decode", "vlrt.image"}


def test_painting_runs_without_training_libraries(latent_bundle: Path) -> None:
    found = imported_by(
        f"""
        from vlrt import load
        load("generate", {str(latent_bundle)!r})("a dog", seed=1).pixels
        """
    )
    assert {"vlrt", "numpy", "onnxruntime", "PIL"} <= found
    assert not found & {*TRAINING, "diffusers"}


def test_commands_run_without_training_libraries(tiny_bundle_folder: Path, photographs: Path) -> None:
    photo, bundle = str(photographs / "a.jpg"), str(tiny_bundle_folder)
    for arguments in (
        ["run", "caption", photo, "--model", bundle, "--attention", str(photographs / "att.png")],
        ["run", "match", photo, "a dog", "--model", bundle],
        ["verify", bundle],
        ["inspect", bundle],
        ["models"],
        ["info"],
    ):
        code = f"""
            from vlrt.cli import main
            try: main({arguments!r})
            except SystemExit as exit_: assert not exit_.code, exit_.code
        """
        assert not imported_by(code) & set(TRAINING), arguments


def test_exporting_without_torch_says_what_to_install() -> None:
    code = """
        import sys
        sys.modules["torch"] = None
        sys.modules["onnx"] = None
        from vlrt.cli import main
        main(["export", "clip", "--random"])
    """
    done = python(code)
    assert done.returncode == 1
    assert done.stdout == ""
    error, hint = done.stderr.splitlines()
    assert error == "error: exporting needs `torch`, `onnx`, not installed here"
    assert hint == "hint: pip install 'vlrt[export]'"


def test_public_names() -> None:
    import vlrt

    for name in vlrt.__all__:
        assert getattr(vlrt, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'paint'"):
        vlrt.paint  # noqa: B018

"""Commands that paint: files that appear, what they say of themselves, and the command that repeats them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlrt.commands.repeat import repeat_command
from vlrt.picture_file import read_parameters

Run = Callable[..., Any]


@pytest.fixture
def place(photograph: Callable[..., Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a photograph, another and a mask."""
    photograph(24, 16, seed=1).save(tmp_path / "photo.png")
    photograph(24, 16, seed=2).save(tmp_path / "other.png")
    mask = np.zeros((16, 24), np.uint8)
    mask[:, 12:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pixels(path: Path | str) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_a_picture_says_how_it_was_made(command: Run, place: Path, latent_bundle: Path) -> None:
    done = command("run", "generate", "a 'red' dog", "--model", latent_bundle, "-o", "a.png", "--seed", 3)
    assert (done.code, done.out, done.err) == (0, "a.png: 16x16, seed 3\n", "")
    found = command("inspect", "a.png")
    assert found.code == 0
    for words in ("prompt       a 'red' dog", "seed         3", "steps        latents 6", "again with:"):
        assert words in found.out
    value = json.loads(command("inspect", "a.png", "--json").out)
    assert value["guidance"] == {"latents": 5.0}
    assert value["model"] == str(latent_bundle)
    assert f"  {value['command']}\n" in found.out


REPEATED = (
    ("latent", "generate", ['a dog & the "cat"; $x', "--steps", "4", "--guidance", "2.5", "--eta", "0.3"]),
    ("latent", "generate", ["a dog", "--scheduler", "euler-ancestral", "--negative", "a cat", "--height", "24"]),
    ("latent", "generate", ["--json", "--guidance-interval", "0.2,0.8", "--guidance-rescale", "0.7"]),
    ("latent", "generate", ["a dog", "--two-pass", "--tiled", "--width", "40", "--height", "40"]),
    ("latent", "generate", ["a dog", "--count", "3"]),
    ("latent", "edit", ["photo.png", "a dog", "--strength", "0.7"]),
    ("latent", "inpaint", ["photo.png", "mask.png", "a dog", "--strength", "0.9"]),
    ("cascade", "generate", ["a dog", "--steps", "prior=3,decoder=2", "--scheduler", "decoder=ddim"]),
    ("cascade", "variations", ["photo.png", "--from", "a dog", "--to", "the cat", "--theta", "0.4"]),
    ("cascade", "variations", ["photo.png", "--from", "a dog", "--to", "the cat", "--theta", "0"]),
    ("latent", "generate", ["a dog", "--whole", "--one-pass", "--width", "40", "--height", "40"]),
    ("classes", "generate", ["--label", "0"]),
    ("cascade", "interpolate", ["photo.png", "other.png", "--frames", "3", "--prompt", "a dog"]),
    ("cascade", "upscale", ["photo.png"]),
)


@pytest.mark.parametrize(
    ("bundle", "task", "options"), REPEATED, ids=[f"{b}-{t}-{i}" for i, (b, t, _) in enumerate(REPEATED)]
)
@pytest.mark.filterwarnings("ignore:the photograph")
def test_the_command_repeats_the_picture(
    command: Run, place: Path, request: pytest.FixtureRequest, bundle: str, task: str, options: list[str]
) -> None:
    model = request.getfixturevalue(f"{bundle}_bundle")
    # A prompt may look like an option.
    options, prompt = (options[1:], ["--", "--json"]) if options[0] == "--json" else (options, [])
    done = command("run", task, *options, "--model", model, "-o", "a.png", *prompt)
    assert done.code == 0, done
    words = shlex.split(json.loads(command("inspect", "a.png", "--json").out)["command"])
    assert words[:3] == ["vlrt", "run", task]
    assert ("--two-pass" in words) == ("--two-pass" in options)
    again = command(*words[1:3], "-o", "b.png", *words[3:])
    assert again.code == 0, again
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    first, second = read_parameters(Path("a.png")), read_parameters(Path("b.png"))
    assert first == second


def test_without_a_prompt_it_says_that_it_paints_the_empty_one(
    command: Run, place: Path, latent_bundle: Path, classes_bundle: Path
) -> None:
    """A model without words has none to miss."""
    done = command("run", "generate", "--model", latent_bundle, "-o", "a.png")
    assert (done.code, done.err) == (0, "no PROMPT is given: the empty one is painted\n")
    assert command("run", "generate", "--model", classes_bundle, "--label", 0, "-o", "b.png").err == ""


def test_several_pictures_are_a_grid_and_each_a_file(command: Run, place: Path, latent_bundle: Path) -> None:
    done = command("run", "generate", "a dog", "--model", latent_bundle, "-o", "g.png", "--seed", 5, "--count", 3)
    assert done.out.splitlines() == ["g.png: 3 pictures, 16x16, seed 5"] + [
        f"g-{i}.png: 16x16, seed {4 + i}" for i in (1, 2, 3)
    ]
    sheet = pixels("g.png")
    assert sheet.shape == (32, 32, 3)
    assert np.array_equal(sheet[:16, 16:], pixels("g-2.png"))
    assert (sheet[16:, 16:] == 255).all()
    command("run", "generate", "a dog", "--model", latent_bundle, "-o", "one.png", "--seed", 6)
    assert np.array_equal(pixels("one.png"), pixels("g-2.png"))


def test_frames_are_a_moving_picture(command: Run, place: Path, cascade_bundle: Path) -> None:
    done = command(
        "run",
        "interpolate",
        "photo.png",
        "other.png",
        "--model",
        cascade_bundle,
        "--frames",
        4,
        "-o",
        "w.gif",
        "--json",
    )
    assert json.loads(done.out)["frames"] == 4
    with Image.open("w.gif") as moving:
        assert moving.n_frames == 4
    command("run", "interpolate", "photo.png", "other.png", "--model", cascade_bundle, "--count", 2).failed(
        2, "--frames"
    )


def test_the_name_of_a_picture_follows_from_its_seed(command: Run, place: Path, latent_bundle: Path) -> None:
    assert (
        command("run", "generate", "a dog", "--model", latent_bundle, "--seed", 9).out
        == "generate-9.png: 16x16, seed 9\n"
    )
    drawn = command("run", "edit", "photo.png", "--model", latent_bundle, "--json")
    seed = json.loads(drawn.out)["seed"]
    assert (place / f"edit-{seed}.png").is_file()


def test_progress_and_previews(command: Run, place: Path, latent_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    save = Image.Image.save

    def saved(self: Image.Image, *arguments: Any, **options: Any) -> None:
        sizes.append(self.size)
        save(self, *arguments, **options)

    monkeypatch.setattr(Image.Image, "save", saved)
    done = command(
        "run", "generate", "a dog", "--model", latent_bundle, "-o", "a.png", "--preview", 2, "--progress", "--steps", 5
    )
    assert sizes == [(8, 8), (8, 8), (16, 16)]
    lines = done.err.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("latents: step 1/5")
    assert sorted(path.name for path in place.iterdir()) == ["a.png", "mask.png", "other.png", "photo.png"]


def test_what_fails_leaves_nothing(
    command: Run, place: Path, tiny_diffusion: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> None:
    broken = tiny_diffusion.latent(tmp_path_factory.mktemp("bundles") / "broken", broken=True)
    before = sorted(place.iterdir())
    command("run", "generate", "a dog", "--model", broken, "-o", "a.png", "--preview", 1).failed(
        1, "`latents`", "step 3"
    )
    assert sorted(place.iterdir()) == before


def test_an_interrupt_leaves_nothing(
    command: Run, place: Path, latent_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlrt.commands import painting

    def interrupted(self: object, step: Any) -> None:
        if step.step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(painting.StepProgress, "__call__", interrupted)
    before = sorted(place.iterdir())
    done = command("run", "generate", "a dog", "--model", latent_bundle, "-o", "a.png", "--preview", 1)
    assert (done.code, done.err.strip()) == (130, "error: interrupted")
    assert sorted(place.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "0"], "0 steps of the stage `latents`"),
        (["--steps", "many"], "`--steps` is `many`"),
        (["--steps", "a=b"], "--steps base=50"),
        (["--guidance", "x"], "`--guidance` is `x`"),
        (["--guidance-interval", "0.2"], "`--guidance-interval` is `0.2`"),
        (["--seed", str(2**64)], "does not fit 64 bits"),
        (["--height", "15"], "--height 12 or 16"),
        (["--scheduler", "heun"], "one of ddim, ddpm"),
        (["-o", "a.xyz"], "no ending of a picture"),
        (["-o", "nowhere/a.png"], "does not exist"),
        (["-o", "."], "no ending of a picture"),
        (["--label", "dog"], "knows no classes"),
    ],
)
def test_bad_options(command: Run, place: Path, latent_bundle: Path, arguments: list[str], words: str) -> None:
    command("run", "generate", "a dog", "--model", latent_bundle, *arguments).failed(2, words)


def test_bad_photographs(command: Run, place: Path, latent_bundle: Path) -> None:
    Image.new("L", (8, 8)).save("small.png")
    Path("text.png").write_text("no picture", "utf-8")
    command("run", "inpaint", "photo.png", "small.png", "--model", latent_bundle).failed(1, "8x8", "24x16")
    command("run", "edit", "text.png", "--model", latent_bundle).failed(1, "not an image")
    command("run", "edit", "photo.png", "--strength", 2, "--model", latent_bundle).failed(2, "`strength` is 2.0")
    command("run", "upscale", "photo.png", "--model", latent_bundle).failed(1, "does not serve `upscale`")


def test_pictures_that_do_not_say(command: Run, place: Path) -> None:
    command("inspect", "photo.png").failed(1, "does not say how it was made")
    command("inspect", "absent.png").failed(1, "`absent.png` does not exist")
    Path("text.png").write_text("no picture", "utf-8")
    command("inspect", "text.png").failed(1, "not a PNG")


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"task": 3}', '{"task": ' + "[" * 5000, "{}" * (1 << 19)])
def test_damaged_parameters(command: Run, place: Path, text: str) -> None:
    from PIL.PngImagePlugin import PngInfo

    chunk = PngInfo()
    chunk.add_text("vlrt", text)
    Image.new("RGB", (4, 4)).save("a.png", pnginfo=chunk)
    command("inspect", "a.png").failed(1, "a.png")


def test_parameters_of_strangers_stay_one_quoted_command() -> None:
    found = {
        "task": "generate",
        "prompt": "x; rm -rf ~",
        "model": "$(evil)",
        "seed": "1 && evil",
        "steps": {"a": "`b`"},
    }
    words = shlex.split(repeat_command(found))
    assert words[:7] == ["vlrt", "run", "generate", "x; rm -rf ~", "--model", "$(evil)", "--steps"]
    assert shlex.split(repeat_command(found | {"prompt": "-o x"}))[-2:] == ["--", "-o x"]


def test_a_bundle_that_paints_verifies(command: Run, latent_bundle: Path, cascade_bundle: Path) -> None:
    for bundle, lines in ((latent_bundle, 2), (cascade_bundle, 4)):
        done = command("verify", bundle)
        assert done.code == 0
        assert done.out.count("  ok ") == lines
        assert "picture" in done.out


def test_painting_is_measured(command: Run, place: Path, cascade_bundle: Path) -> None:
    done = command(
        *("bench", "generate", "--model", cascade_bundle, "--steps", 2, "--repeats", 2),
        *("--processes", 0, "--json", "r.json", "--plot", "r.png"),
    )
    assert done.code == 0, done
    assert "16x16 pixels" in done.out
    assert "steps/s" in done.out
    report = json.loads(Path("r.json").read_text("utf-8"))
    assert list(report["stages"]) == ["prompt", "prior", "decoder", "upsampler", "all"]
    assert {name: one["count"] for name, one in report["stage_steps"].items()} == dict.fromkeys(
        ("prior", "decoder", "upsampler"), 2
    )
    assert report["throughput"] == {}
    command("bench", "caption", "--steps", 2).failed(2, "`--steps` is for pictures only")

"""Makes ``glide.npz``, ``glide_tokens.json`` and ``glide_shapes.json`` with OpenAI's own implementation of GLIDE.

    python tests/golden/glide.py PATH_OF_A_CHECKOUT_OF_GLIDE

The goldens in the repository were made with github.com/openai/glide-text2im at 69b5307, torch 2.13.0, attrs 26.1.0,
ftfy 6.3.1. Weights and pictures follow formulas that the tests compute again; only results are stored.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import tempfile
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

HERE = Path(__file__).parent
CONTEXT, CLIP_CONTEXT = 12, 16
SEED, STEPS, UPSAMPLER_STEPS = 7, "8", "fast27"
GUIDANCE, GRADIENT_GUIDANCE, TEMPERATURE = 3.0, 40.0, 0.997
PROMPTS = ("a photo of the dog", "the CAT and the dog")
MERGES = ["Ġ t", "Ġ a", "h e", "Ġt he", "o f", "Ġ d", "o g", "Ġd og", "p h", "Ġ c", "a t", "Ġc at", "n d", "Ġa nd"]
CLIP_MERGES = ["t h", "th e</w>", "d o", "do g</w>", "a n", "an d</w>", "o f</w>", "c a", "ca t</w>"]
SENTENCES = [*PROMPTS, "It's 42 Dogs;  they'll see the cat's hat", "naïve café — 犬", "", "the dog and the cat " * 4]
BASE = {
    "image_size": 8, "num_channels": 32, "num_res_blocks": 1, "num_head_channels": 32, "attention_resolutions": "8",
    "channel_mult": "1", "text_ctx": CONTEXT, "xf_width": 32, "xf_layers": 2, "xf_heads": 2,
}  # fmt: skip
UPSAMPLER = {
    **BASE,
    "image_size": 16,
    "channel_mult": "1,2",
    "attention_resolutions": "8",
    "num_head_channels": 16,
}
CLIP = {
    "image_size": 8, "patch_size": 2, "n_vocab": 560, "max_text_len": CLIP_CONTEXT, "n_embd": 24,
    "n_head_state_text": 16, "n_head_text": 2, "n_xf_blocks_text": 2, "n_head_state_image": 16, "n_head_image": 2,
    "n_xf_blocks_image": 2, "n_timesteps": 1000, "logit_scale": 100.0,
}  # fmt: skip
CHECKPOINTS = ("base", "upsample", "base_inpaint", "upsample_inpaint", "clip_image_enc", "clip_text_enc")


def weight(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A weight by formula: uniform numbers seeded by the tensor's name, of a spread that keeps prompts apart."""
    numbers = np.random.default_rng(zlib.crc32(name.encode())).random(shape, np.float32) * 2 - 1
    if len(shape) > 1:
        wide = "embedding" in name or "w_voc" in name or "w_pos" in name or "w_t" in name
        spread = 1.0 if wide else (3 / int(np.prod(shape[1:]))) ** 0.5
    else:
        spread = 0.3
    scale = name.endswith((".g", "norm.weight")) or (len(shape) == 1 and name.endswith("weight"))
    values = numbers * np.float32(spread * (0.01 if "patch_proj" in name else 1.0)) + np.float32(scale)
    return values.astype(np.float16).astype(np.float32)


def fill(kind: str, model: torch.nn.Module) -> torch.nn.Module:
    """Gives a module the weights that the tests expect in the checkpoint of that kind."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(torch.from_numpy(weight(f"{kind}/{name}", tuple(tensor.shape))))
    return model.eval()


def photograph() -> Image.Image:
    """The picture that is painted into, 48 x 48 pixels."""
    rows, columns = np.mgrid[:48, :48] / 48
    waves = np.stack([np.cos(5 * rows), np.sin(7 * columns), rows - columns], axis=-1)
    return Image.fromarray(((waves + 1) * 127.5).astype(np.uint8))


def picture(size: int) -> torch.Tensor:
    """That picture as the notebook reads it at one stage's size: [1, 3, size, size] in −1 to 1."""
    pixels = np.asarray(photograph().resize((size, size), Image.Resampling.BICUBIC), np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1


def keep_mask(size: int, first: int) -> torch.Tensor:
    """1 where that picture is kept, [1, 1, size, size]: the upper third of a mask of `first` pixels."""
    small = torch.zeros(1, 1, first, first)
    small[:, :, : first // 3] = 1
    return torch.nn.functional.interpolate(small, (size, size), mode="nearest")


def vocabulary() -> dict[str, int]:
    """GLIDE's order: bytes, merges, the end."""
    from glide_text2im.tokenizer.bpe import bytes_to_unicode

    tokens = [*bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in MERGES), "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}


class Reference:
    """The models of one pipeline, and its loops as the notebooks of the checkout have them."""

    def __init__(self, tokenizer: Any, inpaint: bool) -> None:
        self.tokenizer, self.inpaint = tokenizer, inpaint
        suffix = "_inpaint" if inpaint else ""
        self.base = fill(f"base{suffix}", self._model(BASE, super_res=False))
        self.upsampler = fill(f"upsample{suffix}", self._model(UPSAMPLER, super_res=True))

    def _model(self, sizes: dict[str, Any], super_res: bool) -> Any:
        from glide_text2im import model_creation

        model_creation.get_encoder = lambda: self.tokenizer
        options = model_creation.model_and_diffusion_defaults() | sizes
        options |= {"use_fp16": False, "inpaint": self.inpaint, "super_res": super_res, "dropout": 0.1}
        for name in ("diffusion_steps", "noise_schedule", "timestep_respacing"):
            options.pop(name)
        return model_creation.create_model(**options)

    def text(self, *prompts: str) -> dict[str, torch.Tensor]:
        rows = [self.tokenizer.padded_tokens_and_mask(self.tokenizer.encode(p), CONTEXT) for p in prompts]
        tokens, mask = zip(*rows)
        return {"tokens": torch.tensor(tokens), "mask": torch.tensor(mask, dtype=torch.bool)}

    def _known(self, size: int, rows: int) -> dict[str, torch.Tensor]:
        if not self.inpaint:
            return {}
        mask = keep_mask(size, BASE["image_size"])
        image = (picture(size) * mask).repeat(rows, 1, 1, 1)
        return {"inpaint_image": image, "inpaint_mask": mask.repeat(rows, 1, 1, 1)}

    @staticmethod
    def _replace(known: dict[str, torch.Tensor]) -> Any:
        if not known:
            return None
        mask, image = known["inpaint_mask"], known["inpaint_image"]
        return lambda start: start * (1 - mask) + image * mask

    def sample(self, prompt: str, guidance: float) -> torch.Tensor:
        from glide_text2im.model_creation import create_gaussian_diffusion

        diffusion, size = create_gaussian_diffusion(1000, "squaredcos_cap_v2", STEPS), BASE["image_size"]
        given = self.text(prompt, "") | self._known(size, 2)

        def model_fn(x_t: torch.Tensor, ts: torch.Tensor, **more: Any) -> torch.Tensor:
            half = x_t[: len(x_t) // 2]
            out = self.base(torch.cat([half, half]), ts, **more)
            cond, uncond = out[:, :3].chunk(2)
            eps = uncond + guidance * (cond - uncond)
            return torch.cat([torch.cat([eps, eps]), out[:, 3:]], dim=1)

        replace = self._replace(given) if self.inpaint else None
        loop = diffusion.p_sample_loop
        return loop(model_fn, (2, 3, size, size), device="cpu", denoised_fn=replace, model_kwargs=given)[:1]

    def sample_by_gradient(self, prompt: str, cond_fn: Any) -> torch.Tensor:
        from glide_text2im.model_creation import create_gaussian_diffusion

        diffusion, size = create_gaussian_diffusion(1000, "squaredcos_cap_v2", STEPS), BASE["image_size"]
        shape, text = (1, 3, size, size), self.text(prompt)
        return diffusion.p_sample_loop(self.base, shape, device="cpu", model_kwargs=text, cond_fn=cond_fn)

    def upsample(self, prompt: str, sample: torch.Tensor) -> torch.Tensor:
        from glide_text2im.model_creation import create_gaussian_diffusion

        diffusion, size = create_gaussian_diffusion(1000, "linear", UPSAMPLER_STEPS), UPSAMPLER["image_size"]
        low = ((sample + 1) * 127.5).round() / 127.5 - 1
        given = self.text(prompt) | {"low_res": low} | self._known(size, 1)
        noise = torch.randn(1, 3, size, size) * TEMPERATURE
        loop = diffusion.p_sample_loop if self.inpaint else diffusion.ddim_sample_loop
        replace = self._replace(given) if self.inpaint else None
        return loop(self.upsampler, noise.shape, noise=noise, device="cpu", denoised_fn=replace, model_kwargs=given)


def clip_model(folder: Path) -> Any:
    """The noised CLIP with its tokenizer."""
    import yaml
    from glide_text2im.clip import model_creation
    from glide_text2im.tokenizer.simple_tokenizer import SimpleTokenizer

    config, merges = folder / "config.yaml", folder / "bpe.txt.gz"
    config.write_text(yaml.safe_dump(CLIP), "utf-8")
    merges.write_bytes(gzip.compress("\n".join(["#version", *CLIP_MERGES]).encode()))
    model = model_creation.create_clip_model(str(config), torch.device("cpu"), SimpleTokenizer(str(merges)))
    fill("clip_image_enc", model.image_encoder)
    fill("clip_text_enc", model.text_encoder)
    return model


def digest(shapes: dict[str, tuple[int, ...]]) -> str:
    """What tells one set of names and shapes from every other."""
    return hashlib.sha256(
        "\n".join(sorted(f"{name} {list(shape)}" for name, shape in shapes.items())).encode()
    ).hexdigest()


def published_shapes() -> dict[str, dict[str, Any]]:
    """Number of weights, and a digest of names and shapes, of every checkpoint at its published size."""
    from glide_text2im import model_creation
    from glide_text2im.clip import encoders

    model_creation.get_encoder = lambda: SimpleNamespace(n_vocab=50257)
    models: dict[str, torch.nn.Module] = {}
    with torch.device("meta"):
        for kind, options in (
            ("base", model_creation.model_and_diffusion_defaults()),
            ("upsample", model_creation.model_and_diffusion_defaults_upsampler()),
        ):
            for name in ("diffusion_steps", "noise_schedule", "timestep_respacing"):
                options.pop(name)
            for suffix, inpaint in (("", False), ("_inpaint", True)):
                given = options | {"inpaint": inpaint, "use_fp16": False}
                models[f"{kind}{suffix}"] = model_creation.create_model(**given)
    common = {"n_embd": 512, "n_xf_blocks": 12, "n_head_state": 64, "device": torch.device("cpu")}
    models["clip_image_enc"] = encoders.ImageEncoder(image_size=64, patch_size=4, n_head=12, n_timestep=1000, **common)
    models["clip_text_enc"] = encoders.TextEncoder(n_bpe_vocab=65536, max_text_len=77, n_head=8, **common)
    return {
        kind: {
            "weights": sum(tensor.numel() for tensor in model.parameters()),
            "digest": digest({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}),
        }
        for kind, model in models.items()
    }


def main(checkout: Path) -> None:
    sys.path.insert(0, str(checkout))
    np.bool = bool  # the checkout is older than NumPy's removal of that name
    from glide_text2im.tokenizer.bpe import Encoder

    torch.set_num_threads(1)
    tokenizer = Encoder(vocabulary(), [tuple(merge.split()) for merge in MERGES])
    plain, inpaint = Reference(tokenizer, False), Reference(tokenizer, True)
    with tempfile.TemporaryDirectory() as folder:
        clip = clip_model(Path(folder))
    tokens = {
        "glide": [tokenizer.padded_tokens_and_mask(tokenizer.encode(s), CONTEXT) for s in SENTENCES],
        "clip": [clip.tokenizer.padded_tokens_and_len(clip.tokenizer.encode(s), CLIP_CONTEXT) for s in SENTENCES],
    }
    (HERE / "glide_tokens.json").write_text(json.dumps(tokens) + "\n", "utf-8")
    (HERE / "glide_shapes.json").write_text(json.dumps(published_shapes(), indent=1) + "\n", "utf-8")
    found = _outputs(plain, inpaint, clip)
    for name, prompt in zip(("first", "second"), PROMPTS):
        torch.manual_seed(SEED)
        found[f"{name}/sample"] = plain.sample(prompt, GUIDANCE)
        found[f"{name}/picture"] = plain.upsample(prompt, found[f"{name}/sample"])
    torch.manual_seed(SEED)
    found["inpaint/sample"] = inpaint.sample(PROMPTS[0], GUIDANCE)
    found["inpaint/picture"] = inpaint.upsample(PROMPTS[0], found["inpaint/sample"])
    torch.manual_seed(SEED)
    found["gradient/sample"] = plain.sample_by_gradient(PROMPTS[0], clip.cond_fn([PROMPTS[0]], GRADIENT_GUIDANCE))
    found["gradient/picture"] = plain.upsample(PROMPTS[0], found["gradient/sample"])
    torch.manual_seed(SEED)
    found["unguided/sample"] = plain.sample_by_gradient(PROMPTS[0], None)
    for name, value in found.items():
        print(f"{name:20} {list(value.shape)!s:20} mean {value.mean():8.4f} deviation {value.std():.4f}")
    np.savez_compressed(HERE / "glide.npz", **{name: value.detach().numpy() for name, value in found.items()})


def _outputs(plain: Reference, inpaint: Reference, clip: Any) -> dict[str, torch.Tensor]:
    """What each model gives on fixed inputs."""
    generator, size, large = torch.Generator().manual_seed(0), BASE["image_size"], UPSAMPLER["image_size"]
    x, y = (torch.randn(2, 3, side, side, generator=generator) for side in (size, large))
    low = torch.randn(2, 3, size, size, generator=generator)
    times, text = torch.tensor([997, 12]), plain.text(*PROMPTS)
    found = {"x": x, "y": y, "low": low}
    with torch.no_grad():
        found["base"] = plain.base(x, times, **text)
        found["upsample"] = plain.upsampler(y, times, low_res=low, **text)
        found["base_inpaint"] = inpaint.base(x, times, **text, **inpaint._known(size, 2))
        found["upsample_inpaint"] = inpaint.upsampler(y, times, low_res=low, **text, **inpaint._known(large, 2))
        found["clip_text"] = clip.text_embeddings(list(PROMPTS))
        found["clip_image"] = clip.image_embeddings(x, times)
    found["clip_gradient"] = clip.cond_fn(list(PROMPTS), 1.0)(x, times)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))

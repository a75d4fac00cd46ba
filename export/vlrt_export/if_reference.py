"""IF's rung 4: diffusers' pipelines one after the other against the staged bundle, with the same seed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vlrt.bundle import Bundle
from vlrt.manifest import Measurement
from vlrt.tasks.generate import Painter
from vlrt.tasks.upscale import Upscaler
from vlrt_export.diffusers_folder import Component, Pipeline
from vlrt_export.graph import Check
from vlrt_export.if_stages import BASE, SUPER, UPSCALER
from vlrt_export.picture_checks import measure_picture, photograph

PROMPT, NEGATIVE, SEED = "A red dog on the grass ", "a cat", 7
_STEPS = 2
_UPSCALER_NOISE = 100


def if_checks(folders: Mapping[str, Pipeline], context: int, limit: float) -> Sequence[Check]:
    """One picture of the whole cascade, and a photograph enlarged by its later stages; small and with few steps."""

    def check(folder: Path) -> Iterator[Measurement]:
        bundle, reference = Bundle.open(folder), Reference(folders, context)
        painter = Painter(bundle)
        stages = painter.spec.stages
        side = 2 * max(stage.multiple * stages[0].shape[1] // stage.shape[1] for stage in stages)
        scale = stages[-1].shape[1] * stages[-1].factor // stages[0].shape[1]
        options = {"height": side * scale, "width": 2 * side * scale, "steps": _STEPS, "seed": SEED}
        found = painter(PROMPT, negative=NEGATIVE, **options)
        expected = reference.picture((side, 2 * side), dict.fromkeys(folders, _STEPS))
        yield measure_picture("picture.generate", found.pixels, expected, limit)
        if SUPER in folders:
            start = photograph(side, 2 * side)
            enlarged = Upscaler(bundle)(start, PROMPT, negative=NEGATIVE, steps=_STEPS, seed=SEED)
            expected = reference.picture((side, 2 * side), dict.fromkeys(folders, _STEPS), start)
            yield measure_picture("picture.upscale", enlarged.pixels, expected, limit)

    return (check,)


class Reference:
    """Diffusers' pipelines of the folders' components.

    Args:
        folders: by the stages' names.
        context: ids of a prompt; the pipelines cut at 77.
    """

    def __init__(self, folders: Mapping[str, Pipeline], context: int) -> None:
        self.folders, self.context = folders, context
        base = folders[BASE]
        self.encoder = _text_model("T5EncoderModel", "T5Config", base["text_encoder"])
        self.tokenizer = _tokenizer(base["tokenizer"])

    def picture(
        self, size: tuple[int, int], steps: Mapping[str, int], start: Image.Image | None = None, **more: Any
    ) -> Image.Image:
        """The picture of `PROMPT` guided away from `NEGATIVE`.

        Args:
            size: height and width of the first stage.
            steps: by stage.
            start: a photograph in the place of the first stage's picture.
            more: schedulers in the place of the pipelines' own, by stage.
        """
        words = dict(zip(("prompt_embeds", "negative_prompt_embeds"), map(self.states, (PROMPT, NEGATIVE))))
        last, generator = list(self.folders)[-1], torch.Generator().manual_seed(SEED)
        found: Any = start
        for name, folder in self.folders.items():
            if name == BASE and start is not None:
                continue
            given = {"generator": generator, "num_inference_steps": steps[name]}
            given["output_type"] = "pil" if name == last else "pt"
            if name == UPSCALER:
                texts = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "noise_level": _UPSCALER_NOISE}
                found = _upscaler(folder)(image=found, **texts, **given).images
                continue
            if name == SUPER:
                size = (size[0] * self._scale, size[1] * self._scale)
                given["image"] = found
            pipe = self._pixels(name, folder, more.get(name))
            found = pipe(height=size[0], width=size[1], **words, **given).images
        if found is None:
            raise ValueError("there is no stage")
        picture: Image.Image = found[0]
        return picture

    @property
    def _scale(self) -> int:
        sizes = [int(self.folders[name]["unet"].config["sample_size"]) for name in (BASE, SUPER)]
        return sizes[1] // sizes[0]

    def states(self, prompt: str) -> torch.Tensor:
        """T5's states of a prompt [1, L, C], as ``IFPipeline.encode_prompt`` makes them."""
        padding = {"padding": "max_length", "max_length": self.context, "truncation": True, "return_tensors": "pt"}
        read = self.tokenizer(prompt.lower().strip(), **padding)
        with torch.no_grad():
            states: torch.Tensor = self.encoder(read.input_ids, attention_mask=read.attention_mask)[0]
        return states

    def _pixels(self, name: str, folder: Pipeline, scheduler: Any) -> Any:
        import diffusers

        parts = {"unet": folder["unet"].model(), "scheduler": scheduler or _scheduler(folder["scheduler"])}
        parts |= dict.fromkeys(("tokenizer", "text_encoder", "safety_checker", "feature_extractor", "watermarker"))
        made = diffusers.IFPipeline
        if name == SUPER:
            made = diffusers.IFSuperResolutionPipeline
            parts["image_noising_scheduler"] = _scheduler(folder["image_noising_scheduler"])
        return _quiet(made(**parts, requires_safety_checker=False))


def _upscaler(folder: Pipeline) -> Any:
    import diffusers
    import transformers

    text = _text_model("CLIPTextModel", "CLIPTextConfig", folder["text_encoder"])
    pipe = diffusers.StableDiffusionUpscalePipeline(
        vae=folder["vae"].model(),
        text_encoder=text,
        tokenizer=transformers.CLIPTokenizer.from_pretrained(str(folder["tokenizer"].folder)),
        unet=folder["unet"].model(),
        low_res_scheduler=_scheduler(folder["low_res_scheduler"]),
        scheduler=_scheduler(folder["scheduler"]),
    )
    return _quiet(pipe)


def _quiet(pipe: Any) -> Any:
    """The pipeline without progress bars and without its remarks on tensors in place of pictures."""
    pipe.set_progress_bar_config(disable=True)

    def run(*words: Any, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pipe(*words, **options)

    return run


def _text_model(kind: str, config: str, component: Component) -> Any:
    import transformers

    model = getattr(transformers, kind)(getattr(transformers, config)(**dict(component.config)))
    if component.checkpoint is None:
        raise ValueError(f"`{component.where}` has no weights")
    tensors = component.checkpoint.tensors
    aliases = {"encoder.embed_tokens.weight": "shared.weight", "shared.weight": "encoder.embed_tokens.weight"}
    read = {name: name if name in tensors else aliases[name] for name in model.state_dict()}
    model.load_state_dict({name: tensors[source].float() for name, source in read.items()})
    return model.eval()


def _tokenizer(component: Component) -> Any:
    import transformers

    folder = component.folder
    if folder is None:
        raise ValueError(f"`{component.where}` has no folder")
    if (folder / "tokenizer.json").is_file():
        return transformers.T5TokenizerFast.from_pretrained(str(folder))
    return transformers.T5Tokenizer.from_pretrained(str(folder))


def _scheduler(component: Component) -> Any:
    import diffusers

    return getattr(diffusers, component.kind).from_config(dict(component.config))

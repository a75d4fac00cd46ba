"""Transformers on torch, eager, in fp32: the classes that a user would take, loaded as a user would load them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vlrt import zoo
from vlrt.benchmark_job import Job, Point, Runner, SkippedError
from vlrt.zoo import Entry
from vlrt_export import blip_checkpoint, blip_reference, clip_checkpoint, clip_reference
from vlrt_export import vision_encoder_decoder as vision_text
from vlrt_export import vision_encoder_decoder_reference as vision_text_reference
from vlrt_export.checkpoints import Checkpoint, open_checkpoint

_CLASSES = {
    ("caption", "blip"): "BlipForConditionalGeneration",
    ("answer", "blip"): "BlipForQuestionAnswering",
    ("caption", "vision-encoder-decoder"): "VisionEncoderDecoderModel",
    ("embed", "clip"): "CLIPModel",
}
_LIBRARIES = ("torch", "transformers", "Pillow")


class Decoding:
    """Captions and answers by `generate`."""

    libraries: Sequence[str] = _LIBRARIES
    note = "fp32, torch eager"

    def __init__(self, job: Job, model: Any) -> None:
        self.job, self.model = job, model

    def run(self, point: Point) -> list[Any]:
        """Tokens of the first photograph."""
        arrays = {name: torch.from_numpy(array) for name, array in self.job.arrays(point.batch).items()}
        arrays["pixel_values"] = arrays.pop("pixels")
        length = self.job.tokens
        with torch.inference_mode():
            found = self.model.generate(
                **arrays, num_beams=point.beams, max_new_tokens=length, min_new_tokens=length, do_sample=False
            )
        return [int(token) for token in found[0, -length:]]


class Embedding:
    """Embeddings of photographs by the image tower and its projection."""

    libraries: Sequence[str] = _LIBRARIES
    note = "fp32, torch eager"

    def __init__(self, job: Job, model: Any) -> None:
        self.job, self.model = job, model

    def run(self, point: Point) -> list[Any]:
        """Numbers of the first photograph's embedding, of length one."""
        pixels = torch.from_numpy(self.job.arrays(point.batch)["pixels"])
        with torch.inference_mode():
            found = self.model.get_image_features(pixel_values=pixels)
            found = found / found.norm(dim=-1, keepdim=True)
        return [float(value) for value in found[0]]


def prepare(job: Job) -> None:
    """Writes random weights, or a checkpoint of another layout, as a folder of transformers'."""
    class_name(job)
    if _own_folder(job):
        return
    checkpoint = None if job.source == "random" else open_checkpoint(job.source)
    reference = _reference(job, checkpoint)
    reference.save_pretrained(_folder(job))


def load(job: Job) -> Runner:
    """The model in memory."""
    import transformers

    torch.set_num_threads(job.threads)
    place = job.source if _own_folder(job) else _folder(job)
    model = getattr(transformers, class_name(job)).from_pretrained(place, dtype=torch.float32).eval()
    return Embedding(job, model) if job.task == "embed" else Decoding(job, model)


def class_name(job: Job) -> str:
    """Transformers' class for a job.

    Raises:
        SkippedError: we have no runner for that family and task.
    """
    found = _CLASSES.get((job.task, job.family))
    if found is None:
        raise SkippedError(f"the task `{job.task}` of the family `{job.family}` is not compared with it")
    return found


def _folder(job: Job) -> Path:
    return Path(job.prepared) / "transformers"


def _own_folder(job: Job) -> bool:
    """Whether the source is a folder that `from_pretrained` reads."""
    return job.source != "random" and (Path(job.source) / "config.json").is_file()


def _reference(job: Job, checkpoint: Checkpoint | None) -> Any:
    options = _entry(job).options
    if job.family == "blip":
        kind = blip_checkpoint.CAPTIONING if job.task == "caption" else blip_checkpoint.QUESTIONS
        if checkpoint:
            return blip_reference.transformers_blip(blip_checkpoint.load_blip(checkpoint), checkpoint)
        return blip_reference.transformers_blip(blip_checkpoint.random_blip(options, kind, job.seed), None)
    if job.family == "clip":
        if checkpoint:
            return clip_reference.transformers_clip(clip_checkpoint.load_clip(checkpoint), checkpoint)
        return clip_reference.transformers_clip(clip_checkpoint.random_clip(options, job.seed), None)
    if checkpoint:
        return vision_text_reference.transformers_model(vision_text.load_model(checkpoint), checkpoint)
    return vision_text_reference.transformers_model(vision_text.random_model(options, job.seed), None)


def _entry(job: Job) -> Entry:
    """The zoo's entry that the bundle was made by: its name, else the family's."""
    models = zoo.zoo().models
    found = models.get(job.model) or models.get(job.family)
    if found is None:
        raise SkippedError(f"the zoo has no `{job.model}`, so its random weights cannot be made again")
    return found

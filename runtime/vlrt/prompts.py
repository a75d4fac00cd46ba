"""What stands for a label in front of a text tower: words put into templates, or learned vectors around the words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vlrt.errors import UsageError, VlrtError
from vlrt.tensor_file import read_tensors
from vlrt.text import TextCodec

POSITIONS = ("end", "middle", "front")
_MOST_VECTORS = 1 << 12
_ARTICLE = re.compile(r"(a|an|the)\s", re.IGNORECASE)
_ARTICLE_BEFORE = re.compile(r"\b(a|an|the)\s+\{\}", re.IGNORECASE)


def split_labels(text: str) -> tuple[str, ...]:
    """Labels of a line that separates them by commas, e.g. ``a dog, a cat``."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def read_lines(path: Path) -> tuple[str, ...]:
    """The lines of a text file that hold something, stripped.

    Raises:
        VlrtError: the file cannot be read as UTF-8 text.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise VlrtError(f"`{path}` does not exist", "check the name") from None
    except OSError as error:
        raise VlrtError(f"`{path}` cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise VlrtError(f"`{path}` is not UTF-8 text", "save it as UTF-8, one label a line") from None
    return tuple(line.strip() for line in text.lstrip("\ufeff").splitlines() if line.strip())


def check_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """The labels, if there is something to choose from.

    Raises:
        UsageError: fewer than two, an empty one, or one given twice.
    """
    given = tuple(labels)
    if any(not label.strip() for label in given):
        raise UsageError("a label is empty", "give each label at least one word")
    if len(given) < 2:
        got = f"`{given[0]}` alone" if given else "none"
        raise UsageError(f"choosing needs at least two labels, got {got}", '--labels "a dog, a cat, something else"')
    seen: set[str] = set()
    for label in given:
        if label in seen:
            raise UsageError(f"the label `{label}` is given twice", "name each label once; its share would be split")
        seen.add(label)
    return given


def check_templates(templates: Iterable[str]) -> tuple[str, ...]:
    """The templates, if each has one place for the label.

    Raises:
        UsageError: none at all, or one without exactly one ``{}``.
    """
    given = tuple(templates)
    if not given:
        raise UsageError("there is no template", '--template "a photo of a {}."')
    for template in given:
        if template.count("{}") != 1:
            what = f"the template `{template}` has {template.count('{}')} places for the label, expected one"
            raise UsageError(what, 'write {} where the label goes: "a photo of a {}."')
    return given


def fill(template: str, label: str) -> str:
    """The template with the label in its place; an article of the label's own replaces the template's.

    "a photo of a {}." and "the dog" give "a photo of the dog.".
    """
    if _ARTICLE.match(label):
        template = _ARTICLE_BEFORE.sub("{}", template)
    return template.replace("{}", label)


@dataclass(frozen=True)
class Prompt:
    """One row for a text tower: ids, and which learned vector stands at each place (-1: the id's own)."""

    ids: tuple[int, ...]
    index: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class LearnedPrompts:
    """Context vectors learned in place of a template's words.

    Args:
        vectors: float32 [M, W] for all labels, or [labels, M, W] with vectors of each label's own.
        position: where the label stands: at the ``end``, in the ``middle`` or in ``front`` of the vectors.
        labels: the labels they were learned with, in order; empty where the file does not name them.

    Source: CoOp (Zhou et al., arXiv 2109.01134, equations 2 and 3); places as in that repository's
    ``PromptLearner``: start, vectors, label, full stop, end.
    """

    vectors: NDArray[np.float32]
    position: Literal["end", "middle", "front"] = "end"
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.vectors.ndim not in (2, 3) or not self.vectors.size or self.vectors.shape[-2] > _MOST_VECTORS:
            shape = list(self.vectors.shape)
            raise VlrtError(
                f"learned prompts have shape {shape}, expected [vectors, width] or [labels, vectors, width]"
            )
        if self.vectors.dtype != np.float32 or not np.isfinite(self.vectors).all():
            raise VlrtError("learned prompts hold something else than finite float32 numbers", "convert them again")
        if self.position not in POSITIONS:
            raise UsageError(f"the label's position is `{self.position}`, expected one of {', '.join(POSITIONS)}")
        if self.labels and self.vectors.ndim == 3 and len(self.labels) != len(self.vectors):
            raise VlrtError(f"learned prompts name {len(self.labels)} labels, their vectors fit another number")

    @classmethod
    def open(cls, path: Path) -> LearnedPrompts:
        """Reads the array ``context`` of an `.npz` or `.safetensors` file, with ``position`` and ``labels`` beside it.

        Raises:
            VlrtError: the file is missing or damaged, or holds something else.
        """
        stored = read_tensors(path)
        vectors = stored.arrays.get("context")
        if vectors is None:
            names = ", ".join(f"`{name}`" for name in stored.arrays) or "nothing"
            hint = "convert CoOp's checkpoint with `vlrt export clip-prompts --source FILE -o ctx.npz`"
            raise VlrtError(f"`{path.name}` holds {names}, expected `context`", hint)
        position = stored.words.get("position", "end")
        labels = tuple(line for line in stored.words.get("labels", "").split("\n") if line)
        return cls(np.ascontiguousarray(vectors, np.float32), position, labels)  # type: ignore[arg-type]

    @property
    def count(self) -> int:
        """Vectors of a label."""
        return int(self.vectors.shape[-2])

    @property
    def width(self) -> int:
        """Length of a vector; that of a token's embedding."""
        return int(self.vectors.shape[-1])

    def check(self, labels: Sequence[str], width: int) -> None:
        """Raises `VlrtError` unless the vectors fit the model's width and the labels."""
        if self.width != width:
            raise VlrtError(
                f"learned prompts have width {self.width}, the model's tokens have {width}", "use the model they are of"
            )
        if self.vectors.ndim == 2:
            return
        if self.labels and tuple(labels) != self.labels:
            raise VlrtError("the labels are not those that the prompts were learned for", "leave the labels out")
        if len(labels) != len(self.vectors):
            what = f"learned prompts are for {len(self.vectors)} labels of their own, got {len(labels)}"
            raise VlrtError(what, "give the labels they were learned for, in that order")

    def of_labels(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """The vectors [rows, M, W] of the labels at these places."""
        if self.vectors.ndim == 3:
            return self.vectors[list(rows)]
        return np.broadcast_to(self.vectors, (len(rows), *self.vectors.shape))

    def prompt(self, label: str, codec: TextCodec) -> Prompt:
        """Ids and vector places of a label, its underscores read as spaces; cut where overlong, with a warning."""
        spec, label = codec.spec, label.replace("_", " ")
        inner = codec.ids(f"{label}.", reserve=self.count)
        start, end = int(spec.start_id is not None), int(spec.end_id is not None)
        words = inner[start : len(inner) - end]
        named = min(len(codec.tokenizer.encode(label, add_special_tokens=False).ids), len(words))
        before = {"end": self.count, "middle": self.count // 2, "front": 0}[self.position]
        # Any id but the end may stand for a vector: the graph looks up the vector, but finds the end by the ids.
        holder = spec.start_id if spec.start_id is not None else 0
        middle = [(holder, vector) for vector in range(before)]
        middle += [(word, -1) for word in words[:named]]
        middle += [(holder, vector) for vector in range(before, self.count)]
        middle += [(word, -1) for word in words[named:]]
        row = [*((i, -1) for i in inner[:start]), *middle, *((i, -1) for i in inner[len(inner) - end :])]
        return Prompt(tuple(i for i, _ in row), tuple(vector for _, vector in row))

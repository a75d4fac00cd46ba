"""A folder that others exported: its files by plain name, each refused where it is a link, and what its graphs take."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlrt import manifest
from vlrt.errors import BundleError
from vlrt.manifest import FILE_NAME, FileRecord, GraphSpec, Manifest, Source, UnverifiedFile
from vlrt.onnx_files import external_files
from vlrt.onnx_signature import signature

CONFIG, PREPROCESSOR, TOKENIZER = "config.json", "preprocessor_config.json", "tokenizer.json"
PIXELS, IDS = "pixel_values", "input_ids"
"""Inputs that graphs of every kind have by these names."""

SUBFOLDER = "onnx"
"""Where transformers.js keeps the graphs."""

_VARIANTS = {"": "fp32", "_quantized": "int8", "_int8": "int8", "_uint8": "int8", "_q4": "int4", "_fp16": "fp16"}
"""Endings of a graph's name and the precision each means; where a folder has several, the first."""

_KIND = re.compile(r"[A-Za-z0-9][\w.-]{0,60}")
_LARGEST_JSON = 64 << 20
SERVED = (
    "served are vision-encoder-decoder models (TrOCR among them), and CLIP and SigLIP as vision_model.onnx and "
    "text_model.onnx, or model.onnx"
)
_NOTE = "exported by others: nothing says what the files should hold, and no parity was measured"


@dataclass
class ForeignFolder:
    """Files of the folder by plain name, each a regular file."""

    path: Path
    places: dict[str, Path] = field(default_factory=dict)
    records: dict[str, FileRecord] = field(default_factory=dict)

    def json(self, name: str, *, required: bool = True) -> dict[str, Any]:
        """The object in a JSON file."""
        path = self.path / name
        if not required and not os.path.lexists(path):
            return {}
        if _regular_size(path) > _LARGEST_JSON:
            raise BundleError(f"`{name}` has more than {_LARGEST_JSON:,} bytes", "is it the right file?")
        try:
            value = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"`{name}` is not JSON: {error}", "download the folder again") from None
        if not isinstance(value, dict):
            raise BundleError(f"`{name}` holds a {type(value).__name__}, expected an object", "is it the right file?")
        return value

    def graph(self, stem: str) -> tuple[Path, str] | None:
        """A graph's file and its precision; `None` where the folder has none of that name."""
        for ending, precision in _VARIANTS.items():
            for place in (self.path, self.path / SUBFOLDER):
                path = place / f"{stem}{ending}.onnx"
                if os.path.lexists(path):
                    if place.is_symlink():
                        raise BundleError(f"`{place.name}` is a link", "copy the folder itself: cp -rL FROM TO")
                    return path, precision
        return None

    def spec(self, stem: str) -> GraphSpec:
        """The graph's signature; its file and what it reads beside it join the records."""
        found = self.graph(stem)
        if found is None:
            raise BundleError(f"`{self.path.name}` lacks `{stem}.onnx`", "export it again with its cache (-with-past)")
        path, precision = found
        self.add(path)
        external = tuple(sorted(external_files(path)))
        for name in external:
            if not FILE_NAME.fullmatch(name):
                raise BundleError(f"`{path.name}` would read `{name[:100]}`", "do not trust this folder")
            self.add(path.parent / name)
        inputs, outputs = signature(path)
        return GraphSpec(path.name, precision, inputs, outputs, external)

    def add(self, path: Path) -> str:
        """Records a file; returns its plain name."""
        self.records[path.name] = UnverifiedFile(_regular_size(path))
        self.places[path.name] = path
        return path.name

    def manifest(self, config: Mapping[str, Any], tasks: tuple[str, ...], **sections: Any) -> Manifest:
        source = Source(self.path.name, "unverified", "see the model's source", _NOTE)
        family = str(config.get("model_type", "unknown"))
        if not _KIND.fullmatch(family):
            raise BundleError(f"`model_type` of {CONFIG} is {family[:60]!r}, expected a name", "is it the right file?")
        return Manifest(manifest.SCHEMA, self.path.name, family, tasks, source, self.records, **sections)


def _regular_size(path: Path) -> int:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        raise BundleError(f"`{path.parent.name}` lacks `{path.name}`", "download or export the folder again") from None
    except OSError as error:
        raise BundleError(f"`{path.name}` cannot be read: {error.strerror}", "check its permissions") from None
    if not stat.S_ISREG(found.st_mode):
        hint = "links are not followed; copy the folder itself: cp -rL FROM TO"
        raise BundleError(f"`{path.name}` is not a regular file", hint)
    return found.st_size

"""DALL·E mini's codes of one prompt with random weights: our bundle beside the package min-dalle, in one process.

    pip install --no-deps min-dalle==0.4.11 emoji
    vlrt export dalle-mini --random -o BUNDLE
    python benchmarks/dalle_mini.py BUNDLE [--codes 64] [--pictures 1 4] [--threads 2] [--runs 3] [--json FILE]

Both run the same weights in fp32 on the same prompt, guided by the factor 16, each code the likeliest, turn by turn, so
that a busy moment meets both. Measured is everything from the prompt's ids to the codes; painting them is left out.
The peer attends over all 256 places and projects the text's keys and values anew at every step, whatever the codes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlrt.bundle import Bundle
from vlrt.decode import DecodeOptions, StepModel, generate
from vlrt.engines import EngineOptions, Sessions
from vlrt.text import TextCodec
from vlrt_export.dalle_mini_checkpoint import DalleMini, random_dalle_mini

PROMPT = "an armchair in the shape of an avocado"
GUIDANCE = 16.0


class Ours:
    """The bundle through the runtime's own sessions and loop."""

    def __init__(self, folder: Path, threads: int) -> None:
        bundle = Bundle.open(folder)
        if bundle.manifest.decode is None:
            raise SystemExit(f"{folder} draws no codes")
        self.spec = bundle.manifest.decode
        self.sessions = Sessions(bundle, EngineOptions(threads=threads))
        self.step = StepModel.open(self.spec, self.sessions.get)
        text = TextCodec.open(bundle)
        self.ids = text.pad([text.prompt_row(PROMPT), text.prompt_row("")])
        self.input = text.spec.input

    def draw(self, pictures: int, codes: int) -> list[list[int]]:
        """Codes of several pictures of the one prompt, as its candidates share it."""
        found = self.sessions.run_chain(self.spec.chain, {self.input: self.ids})
        asked, nothing = ({name: value[i : i + 1] for name, value in found.items()} for i in (0, 1))
        options = DecodeOptions(
            max_new_tokens=codes, guidance_scale=GUIDANCE, do_sample=True, top_k=1, num_return_sequences=pictures
        )
        drawn = generate(self.step, asked, options, unconditional=nothing)[0]
        return [[int(code) for code in hypothesis.tokens] for hypothesis in drawn]


class Theirs:
    """The same weights in the package's modules, eager, as its own loop calls them."""

    def __init__(self, model: DalleMini, ids: np.ndarray) -> None:
        from min_dalle.models import DalleBartDecoder, DalleBartEncoder

        read, written = model.encoder.sizes, model.decoder.layout
        sizes = {"embed_count": read.width, "glu_embed_count": read.inner, "layer_count": read.layers, "device": "cpu"}
        sizes |= {"attention_head_count": read.heads}
        self.encoder = DalleBartEncoder(text_vocab_count=read.vocabulary, text_token_count=64, **sizes).eval()
        self.decoder = DalleBartDecoder(image_vocab_count=written.codes, **sizes).eval()
        encoder, decoder = ({n: t.contiguous() for n, t in half.items()} for half in model.weights())
        decoder["lm_head.weight"] = torch.nn.functional.pad(decoder["lm_head.weight"], (0, 0, 0, 1))
        self.encoder.load_state_dict(encoder, strict=False, assign=True)
        self.decoder.load_state_dict(decoder, strict=False, assign=True)
        self.ids = torch.ones(2, 64, dtype=torch.long)
        self.ids[:, : ids.shape[1]] = torch.from_numpy(ids[::-1].copy())  # theirs begin with the empty prompt
        self.cache = (read.layers, 256, read.width)

    @torch.no_grad()
    def draw(self, pictures: int, codes: int) -> list[list[int]]:
        """As `MinDalle.generate_raw_image_stream` does."""
        layers, places, width = self.cache
        rows = [0] * pictures + [1] * pictures
        states = self.encoder(self.ids)[rows]
        mask = self.ids[rows].not_equal(1)[:, None, None, :]
        cache = torch.zeros(layers, 4 * pictures, places, width)
        drawn = torch.full((pictures, codes + 1), 2**14 - 1, dtype=torch.long)
        for step in range(codes):
            drawn[:, step + 1], cache = self.decoder.sample_tokens(
                settings=torch.tensor([1.0, 1, GUIDANCE]),
                attention_mask=mask,
                encoder_state=states,
                attention_state=cache,
                prev_tokens=drawn[:, [step]],
                token_index=torch.tensor([step]),
            )
        return drawn[:, 1:].tolist()  # type: ignore[no-any-return]


def alternate(calls: dict[str, Callable[[], Any]], runs: int) -> dict[str, list[float]]:
    """Seconds of each call, all of them in turn, after a round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
    return {name: found[1:] for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--codes", type=int, default=64)
    parser.add_argument("--pictures", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--sizes", type=json.loads, default={}, help="Of the random bundle, where not DALL·E mini's.")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    ours = Ours(given.bundle, given.threads)
    theirs = Theirs(random_dalle_mini(given.sizes, 0), ours.ids)
    torch.set_num_threads(given.threads)  # the package takes all of them when it is imported
    rows = {}
    for pictures in given.pictures:
        found, expected = ours.draw(pictures, given.codes), theirs.draw(pictures, given.codes)
        alike = np.mean(np.equal(found, expected))
        calls = {
            "vlrt": lambda n=pictures: ours.draw(n, given.codes),
            "min-dalle": lambda n=pictures: theirs.draw(n, given.codes),
        }
        times = alternate(calls, given.runs)
        rows[str(pictures)] = times
        middle = {name: statistics.median(found) for name, found in times.items()}
        spread = {name: f"{min(found):.2f}-{max(found):.2f}" for name, found in times.items()}
        print(f"{pictures} pictures, {given.codes} codes: {alike:.1%} of the codes alike")
        for name, seconds in middle.items():
            print(f"  {name:10} {seconds:7.2f} s ({spread[name]}), {1e3 * seconds / given.codes:6.1f} ms a code")
        print(f"  {middle['min-dalle'] / middle['vlrt']:.2f} x")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1), "utf-8")


if __name__ == "__main__":
    main()

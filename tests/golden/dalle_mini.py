"""Makes `dalle_mini.npz`: what min-dalle's own modules give for tiny seeded weights; and its tokenizer's ids.

Run with the packages `min-dalle` 0.4.11 and `emoji` on the path:
    python tests/golden/dalle_mini.py
The published sizes of tokens (16,384 codes, 16x16 of them, 64 ids of text) are kept, widths and layers are not.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import emoji
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from min_dalle.models import DalleBartDecoder, DalleBartEncoder, VQGanDetokenizer
from min_dalle.text_tokenizer import TextTokenizer
from seeded_weights import seeded

WIDTH, HEADS, INNER, LAYERS, WORDS, CODES = 32, 2, 40, 2, 70, 2**14
IMAGES, STEPS, SCALE = 2, 256, 4.0
TEXTS = (
    "an armchair in the shape of an avocado",
    "  Two   RED foxes,  on ice ",
    "a café: naïve & ŁÓDŹ — 3.5 owls?!",
    "tab\there and\nthere",
    "ab abab abc bca cab",
    "",
)
EMOJI_TEXTS = (
    "a \N{DOG FACE} in the \N{AVOCADO}",
    "ab\N{HEAVY BLACK HEART}\ufe0f\u200d\N{FIRE} ab",
    "\N{DOG FACE}\N{DOG FACE}",
)
LETTERS = "abcdefghijklmnopqrstuvwxyz 0123456789.,:&"


def tokenizer_files() -> tuple[dict[str, int], list[str]]:
    """A vocabulary of letters and some pieces, and its merges; a few letters are unknown."""
    merges = ["Ġ a", "a n", "Ġa n", "i n", "a b", "Ġ ab", "ab ab", "c ab", "h e", "t he", "Ġ the", "o x", "Ġa b"]
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "Ġ", *(letter for letter in LETTERS if letter not in " qz7")]
    pieces += [merge.replace(" ", "") for merge in merges]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return vocabulary, merges


def build(kind: str) -> torch.nn.Module:
    sizes = {"embed_count": WIDTH, "attention_head_count": HEADS, "glu_embed_count": INNER, "layer_count": LAYERS}
    if kind == "encoder":
        return DalleBartEncoder(**sizes, text_vocab_count=WORDS, text_token_count=64, device="cpu")
    return DalleBartDecoder(**sizes, image_vocab_count=CODES, device="cpu")


def load(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in seeded(shapes).items()})
    model.eval()
    return shapes


def draw(decoder: DalleBartDecoder, states: torch.Tensor, ids: torch.Tensor, settings: list[float]) -> torch.Tensor:
    """Codes [IMAGES, STEPS] as `MinDalle.generate_raw_image_stream` draws them."""
    rows = [0] * IMAGES + [1] * IMAGES
    cache = torch.zeros(LAYERS, 4 * IMAGES, 256, WIDTH)
    drawn = torch.full((IMAGES, STEPS + 1), 2**14 - 1, dtype=torch.long)
    for step in range(STEPS):
        drawn[:, step + 1], cache = decoder.sample_tokens(
            settings=torch.tensor(settings),
            attention_mask=ids[rows].not_equal(1)[:, None, None, :],
            encoder_state=states[rows],
            attention_state=cache,
            prev_tokens=drawn[:, [step]],
            token_index=torch.tensor([step]),
        )
    return drawn[:, 1:]


def paint() -> dict[str, np.ndarray]:
    """Codes and their pictures by the detokenizer, whose sizes are all fixed; of a 2x2 grid, to be quick."""
    model = VQGanDetokenizer()
    shapes = load(model)
    codes = torch.randint(2**14, (1, 2, 2), generator=torch.Generator().manual_seed(5))
    vectors = model.embedding(codes).permute(0, 3, 1, 2)
    painted = model.decoder(model.post_quant_conv(vectors)).clip(0.0, 1.0)
    return {"codes": codes.numpy(), "painted": painted.numpy(), "detoker": np.array(json.dumps(shapes))}


@torch.no_grad()
def main() -> None:
    found = paint()
    print("deviation of pixels", found["painted"].std())
    vocabulary, merges = tokenizer_files()
    reference = TextTokenizer(vocabulary, merges)
    found["tokenizer"] = np.array(json.dumps({"vocabulary": vocabulary, "merges": merges}))
    found["texts"] = np.array(json.dumps([[text, reference.tokenize(text)] for text in TEXTS]))
    found["emoji"] = np.array(json.dumps([[text, reference.tokenize(text)] for text in EMOJI_TEXTS]))
    known = {sign: entry["en"].strip(":") for sign, entry in emoji.EMOJI_DATA.items()}
    used = {sign: name for sign, name in known.items() if any(sign in text for text in EMOJI_TEXTS)}
    found["emoji_names"] = np.array(json.dumps(used))
    encoder, decoder = build("encoder"), build("decoder")
    shapes = {"encoder": load(encoder), "decoder": load(decoder)}
    found["shapes"] = np.array(json.dumps(shapes))
    tokens = reference.tokenize(TEXTS[0])
    ids = torch.ones(2, 64, dtype=torch.long)
    ids[0, :2] = torch.tensor([tokens[0], tokens[-1]])
    ids[1, : len(tokens)] = torch.tensor(tokens)
    states = encoder(ids)
    found |= {"ids": ids.numpy(), "states": states.numpy()}
    greedy = draw(decoder, states, ids, [1.0, 1, SCALE])
    assert (greedy[0] == greedy[1]).all()
    found["greedy"] = greedy[0].numpy()
    torch.manual_seed(11)
    found["sampled"] = draw(decoder, states, ids, [0.7, 50, SCALE]).numpy()
    print(len(greedy[0].unique()), "codes greedy,", [len(row.unique()) for row in torch.tensor(found["sampled"])])
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **found)


if __name__ == "__main__":
    main()

"""Makes `dvae/`: OpenAI's discrete VAE with tiny random weights, as it is published, and what it gives.

Run with the package `DALL-E` 0.1 and `attrs` on the path (no torchvision is needed):
    python tests/golden/dvae.py
`encoder.pkl` and `decoder.pkl` are pickled modules, as those that OpenAI published. Its sizes are smaller than the
package's own checks admit, so these are off.
"""

from __future__ import annotations

from pathlib import Path

import attr
import numpy as np
import torch
from dall_e import Decoder, Encoder, map_pixels, unmap_pixels

HIDDEN, FIRST, CODES, BLOCKS = 4, 12, 40, 1
FOLDER = Path(__file__).with_suffix("")


def main() -> None:
    torch.manual_seed(7)
    attr.validators.set_disabled(True)
    encoder = Encoder(n_hid=HIDDEN, n_blk_per_group=BLOCKS, vocab_size=CODES).eval()
    decoder = Decoder(n_init=FIRST, n_hid=HIDDEN, n_blk_per_group=BLOCKS, vocab_size=CODES).eval()
    with torch.no_grad():
        for parameter in (*encoder.parameters(), *decoder.parameters()):
            if parameter.ndim == 1:
                parameter.normal_(0.0, 0.05)
            else:
                parameter.mul_(2.0)
        coarse = torch.rand(2, 3, 4, 6)
        pixels = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="nearest")
        last = encoder.blocks.output.conv.b
        last -= encoder(map_pixels(pixels)).mean((0, 2, 3))  # else one code would be the likeliest everywhere
        logits = encoder(map_pixels(pixels))
        codes = logits.argmax(1)
        one_hot = torch.nn.functional.one_hot(codes, CODES).permute(0, 3, 1, 2).float()
        painted = unmap_pixels(torch.sigmoid(decoder(one_hot).float()[:, :3]))
        print(len(codes.unique()), "codes used;", painted.std().item(), "deviation of pixels")
    FOLDER.mkdir(exist_ok=True)
    torch.save(encoder, FOLDER / "encoder.pkl")
    torch.save(decoder, FOLDER / "decoder.pkl")
    found = {"pixels": pixels, "logits": logits, "codes": codes, "painted": painted}
    np.savez_compressed(FOLDER / "expected.npz", **{name: value.numpy() for name, value in found.items()})


if __name__ == "__main__":
    main()

"""The dual encoder against torch's own attention and transformer layers under the same parameter names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vlrt_export.modules.dual_encoder import DualEncoder, DualEncoderSizes, MultiHeadAttention, TextLayer

END = 2
SIZES = DualEncoderSizes(
    regions=10, width=16, heads=4, text_layers=2, feed_forward=32, context=9, dimensions=6, vocabulary=20
)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def test_attention_is_torchs() -> None:
    ours = MultiHeadAttention(16, 4)
    theirs = nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    query, memory = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    torch.testing.assert_close(ours(query, memory), theirs(query, memory, memory)[0])


def test_a_text_layer_is_torchs_pre_norm_layer() -> None:
    ours = TextLayer(SIZES)
    theirs = nn.TransformerEncoderLayer(16, 4, 32, activation="gelu", batch_first=True, norm_first=True).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 7, 16)
    mask = nn.Transformer.generate_square_subsequent_mask(7)
    torch.testing.assert_close(ours(x, mask), theirs(x, src_mask=mask))


def test_an_image_is_pooled_by_its_shifted_mean() -> None:
    model = DualEncoder(SIZES, END).image
    model.query.normal_()
    theirs = nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.load_state_dict(model.pool.state_dict())
    regions = torch.randn(2, 5, 10)
    a = model.annotation(regions).relu()
    query = a.mean(1, keepdim=True) + model.query
    pooled = query + theirs(query, a, a)[0]
    expected = F.normalize(model.projection(F.layer_norm(pooled, (16,), model.norm.weight, model.norm.bias))[:, 0])
    torch.testing.assert_close(model(regions), expected)


def test_embeddings_have_length_one() -> None:
    model = DualEncoder(SIZES, END)
    texts = model.text(torch.tensor([[1, 5, END, 0], [1, 7, 8, END]]))
    images = model.image(torch.randn(3, 5, 10))
    torch.testing.assert_close(torch.cat([texts, images]).norm(dim=1), torch.ones(5))


def test_padding_after_the_end_changes_nothing() -> None:
    model = DualEncoder(SIZES, END).text
    short = model(torch.tensor([[1, 5, 6, END]]))
    padded = model(torch.tensor([[1, 5, 6, END, 0, 0, 0]]))
    torch.testing.assert_close(short, padded)


def test_the_text_is_read_at_its_first_end() -> None:
    model = DualEncoder(SIZES, END).text
    ended = model(torch.tensor([[1, 5, 6, END, 9, END]]))
    torch.testing.assert_close(ended, model(torch.tensor([[1, 5, 6, END]])))


def test_earlier_words_matter() -> None:
    model = DualEncoder(SIZES, END).text
    one, other = model(torch.tensor([[1, 5, 6, END], [1, 7, 6, END]]))
    assert (one - other).abs().max() > 1e-3

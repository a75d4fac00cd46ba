"""BLEU and CIDEr-D against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from vlrt_export.metrics import bleu, caption_words, cider_d, ngrams, score_captions


def _words(text: str) -> list[str]:
    return text.split()


def test_words_are_lower_case_without_punctuation() -> None:
    assert caption_words("A man's T-shirt, red .") == ["a", "man's", "t", "shirt", "red"]


def test_ngrams_count_repetitions() -> None:
    assert ngrams(_words("a b a b"), 2) == {("a", "b"): 2, ("b", "a"): 1}
    assert not ngrams(["a"], 2)


def test_bleu_clips_counts_as_in_the_papers_first_example() -> None:
    references = [[_words("the cat is on the mat"), _words("there is a cat on the mat")]]
    first, second, *_ = bleu([_words("the the the the the the the")], references)
    assert first == pytest.approx(2 / 7)
    assert second == 0


def test_bleu_multiplies_precisions_and_brevity() -> None:
    found = bleu([_words("a b c d")], [[_words("a b c d e f")]])
    assert found == pytest.approx([math.exp(1 - 6 / 4)] * 4)


def test_bleu_is_the_geometric_mean_over_the_corpus_not_the_mean_of_sentences() -> None:
    hypotheses = [_words("a b"), _words("x y z w")]
    references = [[_words("a b")], [_words("x y q r")]]
    first, second, third, _ = bleu(hypotheses, references)
    assert first == pytest.approx(4 / 6)
    assert second == pytest.approx(math.sqrt(4 / 6 * 2 / 4))
    assert third == 0


@pytest.mark.parametrize(("lengths", "closest"), [((3, 5), 3), ((5, 3), 3), ((2, 5), 5), ((4, 9), 4)])
def test_bleu_takes_the_closest_reference_length_and_the_shorter_of_two(lengths: tuple[int, int], closest: int) -> None:
    hypothesis = ["w"] * 4
    found = bleu([hypothesis], [[["w"] * length for length in lengths]])[0]
    precision = min(4, max(lengths)) / 4
    assert found == pytest.approx(precision * min(1.0, math.exp(1 - closest / 4)))


def test_bleu_of_nothing_is_nothing() -> None:
    assert bleu([[]], [[_words("a b")]]) == [0, 0, 0, 0]


def test_cider_of_the_reference_itself_is_ten() -> None:
    texts = ["a dog runs on grass", "two men play some ball", "one red boat at sea"]
    words = [text.split() for text in texts]
    assert cider_d(words, [[w] for w in words]) == pytest.approx(10)


def test_cider_of_a_shorter_caption_by_hand() -> None:
    # Two images with disjoint words: every n-gram of either is in one document of two, so each weighs log 2.
    hypotheses = [["a", "b"], _words("p q r s")]
    references = [[_words("a b c d")], [_words("p q r s")]]
    penalty = math.exp(-(2**2) / (2 * 6**2))
    one = 2 / math.sqrt(2 * 4)  # two shared of two and four unigrams
    two = 1 / math.sqrt(1 * 3)
    first = 10 * penalty * (one + two + 0 + 0) / 4
    assert cider_d(hypotheses, references) == pytest.approx((first + 10) / 2)


def test_cider_clips_repeated_words_in_the_numerator() -> None:
    hypotheses = [["a", "a"], ["p", "q"]]
    references = [[["a", "b"]], [["p", "q"]]]
    unigrams = (1 * 1) / (2 * math.sqrt(2))
    first = 10 * unigrams / 4
    second = 10 * 2 / 4
    assert cider_d(hypotheses, references) == pytest.approx((first + second) / 2)


def test_cider_gives_no_weight_to_what_every_image_has() -> None:
    hypotheses = [["the"], ["the"]]
    references = [[["the"]], [["the"]]]
    assert cider_d(hypotheses, references) == 0


def test_cider_counts_a_document_once_however_many_references_have_the_word() -> None:
    hypotheses = [["a"], ["b"], ["b"]]
    references = [[["a"], ["a", "a"]], [["b"]], [["b"]]]
    # idf(a) = log 3: "a" against its two references, the second of which is one word longer.
    first = 10 * (1 + math.exp(-1 / 72) * (1 * 2) / (1 * 2)) / (4 * 2)
    second = 10 / 4
    assert cider_d(hypotheses, references) == pytest.approx((first + 2 * second) / 3)


def test_scores_of_captions_by_image() -> None:
    references = {"x.jpg": ["A dog runs fast."], "y.jpg": ["Two men sit down!"], "unused.jpg": ["a"]}
    scores = score_captions({"y.jpg": "two men sit down", "x.jpg": "a dog runs fast"}, references)
    assert scores.bleu == pytest.approx((100, 100, 100, 100))
    assert scores.cider == pytest.approx(10)


def test_an_image_without_references_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"`z.jpg` has no reference"):
        score_captions({"z.jpg": "a dog"}, {"x.jpg": ["a dog"]})
    with pytest.raises(ValueError, match="no captions"):
        score_captions({}, {})

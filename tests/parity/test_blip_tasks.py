"""BLIP's answers and matches against transformers' classes, on tiny random models."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from vlrt import cli
from vlrt.bundle import Bundle
from vlrt.decode import DecodeOptions, generate, score_continuations
from vlrt.errors import UsageError
from vlrt.tasks.answer import Answerer
from vlrt.tasks.match import Matcher
from vlrt.text import TextTruncatedWarning
from vlrt.zoo import Entry
from vlrt_export.bundle_writer import write_bundle
from vlrt_export.families import blip
from vlrt_export.generate_reference import compare, expected_sequences
from vlrt_export.request import Request

SEEDS = range(8)
VOCABULARY, PAD, CLS, SEP, BOS, SIDE = 90, 0, 1, 2, 3, 16
SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[DEC]", "[UNK]", "[MASK]")
WORDS = ("how", "many", "dogs", "are", "there", "?", "one", "two", "a", "cat", "on", "grass", "##s")
ANSWERS = ("one", "two", "two dogs", "a cat on grass", "cats")


def reference(kind: str, seed: int) -> Any:
    """A model whose every weight is wide; as the library initialises it, it would not see the image."""
    text = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 40}
    text |= {"bos_token_id": BOS, "sep_token_id": SEP, "pad_token_id": PAD, "eos_token_id": SEP}
    vision = {"hidden_size": 32, "intermediate_size": 40, "image_size": SIDE, "patch_size": 4}
    shape = {"num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BlipConfig(text_config=text | shape, vision_config=vision | shape, image_text_hidden_size=12)
    torch.manual_seed(seed)
    model = getattr(transformers, f"BlipFor{kind}")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.3 if parameter.ndim > 1 else 0.1)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter += 1.0
            if "crossattention.output.dense" in name:
                parameter *= 3.0
        if kind == "QuestionAnswering":
            model.text_decoder.cls.predictions.bias[SEP] += 2.0
    return model


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    words = [*SPECIAL, *WORDS, *(f"word{i}" for i in range(VOCABULARY - len(SPECIAL) - len(WORDS)))]
    (folder / "vocab.txt").write_text("\n".join(words), "utf-8")
    special = ["[DEC]"]
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"), additional_special_tokens=special)
    tokenizer.save_pretrained(folder)
    transformers.BlipImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def plan(folder: Path) -> Any:
    return blip.build(Request("blip-tiny", Entry("blip", ("answer",), ""), str(folder)))


def export(kind: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    torch.set_num_threads(1)
    checkpoint = save(reference(kind, 0), tmp_path_factory.mktemp(kind))
    folder = tmp_path_factory.mktemp("bundle") / "blip-tiny"
    write_bundle(plan(checkpoint), folder)
    return checkpoint, folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint that answers, and its bundle."""
    return export("QuestionAnswering", tmp_path_factory)


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint that matches, and its bundle."""
    return export("ImageTextRetrieval", tmp_path_factory)


@pytest.fixture(scope="module")
def models(
    questions: tuple[Path, Path], reweighed: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[Any, Any]]:
    """Per seed transformers' model and our graphs with its weights."""
    found = []
    for seed in SEEDS:
        model, folder = reference("QuestionAnswering", seed), tmp_path_factory.mktemp(f"seed{seed}")
        found.append((model, reweighed.Reweighed(questions[1], plan(save(model, folder)), folder)))
    return found


def inputs(seed: int, lengths: list[int]) -> tuple[Any, Any]:
    """Pixels, and questions of these lengths, padded at the end."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in zip(ids, lengths):
        row[:length] = torch.randint(6, VOCABULARY, (length,), generator=generator)
        row[0], row[length - 1] = CLS, SEP
    return torch.randn(len(lengths), 3, SIDE, SIDE, generator=generator), ids


def ours(graphs: Any, seen: Any, ids: Any, options: dict[str, Any]) -> Any:
    arrays = {"pixels": seen.numpy(), "input_ids": ids.numpy()}
    return generate(graphs.step(), graphs.run_chain(graphs.manifest.decode.chain, arrays), DecodeOptions(**options))


def theirs(model: Any, seen: Any, ids: Any, options: dict[str, Any]) -> Any:
    def run(**chosen: Any) -> Any:
        return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=seen, **chosen)

    return expected_sequences(run, 1, (SEP,), {"do_sample": False, **options})


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("beams", [1, 3, 5])
def test_answers_and_scores(models: list[tuple[Any, Any]], beams: int, images: int) -> None:
    ended = set()
    for seed, (model, graphs) in enumerate(models):
        seen, ids = inputs(seed, [6] * images)
        options = {"num_beams": beams, "num_return_sequences": beams, "max_new_tokens": 8}
        found = ours(graphs, seen, ids, options)
        agreement = compare(found, theirs(model, seen, ids, options))
        assert (agreement.different, agreement.ambiguous) == (0, 0), f"seed {seed}"
        assert agreement.score_error < 1e-4
        ended |= {hypothesis.finished for image in found for hypothesis in image}
    assert ended == {True, False}, "the models should end some answers and not others, or little is tested"


def test_questions_of_different_lengths_equal_single_runs(models: list[tuple[Any, Any]]) -> None:
    """The library lets the answer read a question's padding, so that it answers a batch otherwise than one by one."""
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 8}
    lengths = [4, 9, 3, 6]
    for seed, (model, graphs) in enumerate(models):
        seen, ids = inputs(seed, lengths)
        for i, found in enumerate(ours(graphs, seen, ids, options)):
            alone = theirs(model, seen[i : i + 1], ids[i : i + 1, : lengths[i]], options)
            agreement = compare([found], alone)
            assert agreement.different == 0
            assert agreement.score_error < 1e-4


def test_image_and_question_matter(models: list[tuple[Any, Any]]) -> None:
    """Or all of the above would be proven of models that do not look or listen."""
    options = {"max_new_tokens": 8, "min_new_tokens": 8}
    changed = {"image": 0, "question": 0}
    for seed, (_, graphs) in enumerate(models):
        seen, ids = inputs(seed, [6, 6])
        first = ours(graphs, seen[:1], ids[:1], options)[0][0]
        for what, other in (("image", (seen[1:], ids[:1])), ("question", (seen[:1], ids[1:]))):
            found = ours(graphs, *other, options)[0][0]
            assert abs(found.score - first.score) > 1e-3
            changed[what] += found.tokens != first.tokens
    assert min(changed.values()) >= len(models) / 2


def test_given_answers_are_ranked_as_the_original_does(models: list[tuple[Any, Any]]) -> None:
    """Sums of log-probabilities as the loss of `rank_answer` in salesforce/BLIP, all answers its candidates."""
    random = np.random.default_rng(0)
    for seed, (model, graphs) in enumerate(models):
        seen, ids = inputs(seed, [6])
        answers = [[*random.integers(6, VOCABULARY, n).tolist(), SEP] for n in (1, 4, 2, 1, 3)]
        arrays = {"pixels": seen.numpy(), "input_ids": ids.numpy()}
        initial = graphs.run_chain(graphs.manifest.decode.chain, arrays)
        found = score_continuations(graphs.step(), initial, [BOS], answers)
        rows = torch.full((len(answers), 6), PAD)
        for row, answer in zip(rows, answers):
            row[: len(answer) + 1] = torch.tensor([BOS, *answer])
        with torch.no_grad():
            image = model.vision_model(seen)[0]
            asked = model.text_encoder(ids, attention_mask=torch.ones_like(ids), encoder_hidden_states=image)[0]
            expected = -model.text_decoder(
                rows,
                attention_mask=(rows != PAD).long(),
                encoder_hidden_states=asked.repeat(len(rows), 1, 1),
                labels=rows.masked_fill(rows == PAD, -100),
                reduction="none",
            ).loss
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
        assert score_continuations(graphs.step(), initial, [BOS], answers[1:2]) == pytest.approx(found[1:2], abs=1e-4)


def test_from_question_to_answer(
    questions: tuple[Path, Path], photograph: Callable[..., Image.Image], recwarn: pytest.WarningsRecorder
) -> None:
    """The whole way, against the library's own processor and tokenizer."""
    checkpoint, folder = questions
    answerer, model = Answerer(Bundle.open(folder)), reference("QuestionAnswering", 0)
    processor = transformers.BlipProcessor(
        transformers.BlipImageProcessor.from_pretrained(checkpoint),
        transformers.BertTokenizerFast.from_pretrained(checkpoint),
    )
    pictures = [photograph(50, 30, seed=seed) for seed in (1, 2)]
    asked = ["How many dogs are there?", "how many cats are on grass"]
    for picture, question in zip(pictures, asked):
        given = processor(images=picture, text=question, return_tensors="pt")
        ids = model.generate(**given, num_beams=3, max_new_tokens=6, do_sample=False)
        sentence = processor.decode(ids[0], skip_special_tokens=True)
        assert answerer(picture, question, num_beams=3, max_new_tokens=6).text == sentence.strip()
    together = answerer.batch(pictures, asked, max_new_tokens=6)
    assert [a.text for a in together] == [answerer(p, q, max_new_tokens=6).text for p, q in zip(pictures, asked)]
    ranked = answerer(pictures[0], asked[0], ANSWERS)
    assert {ranked.text, *(a.text for a in ranked.alternatives)} == set(ANSWERS)
    scores = [ranked.score, *(a.score for a in ranked.alternatives)]
    assert scores == sorted(scores, reverse=True)
    assert not recwarn.list


def test_a_photograph_is_looked_at_once(
    questions: tuple[Path, Path], photograph: Callable[..., Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    answerer, picture = Answerer(Bundle.open(questions[1])), photograph(50, 30, seed=3)
    asked = ("how many dogs are there?", "a cat?", "how many dogs are there?")
    expected = [answerer(picture, question, max_new_tokens=6) for question in asked]
    seen = answerer.look(picture)
    runs: list[str] = []
    run_chain = answerer.sessions.run_chain
    monkeypatch.setattr(
        answerer.sessions, "run_chain", lambda roles, given: (runs.extend(roles), run_chain(roles, given))[1]
    )
    found = [answerer.ask(seen, question, max_new_tokens=6) for question in asked]
    assert [(a.text, a.score) for a in found] == [(a.text, a.score) for a in expected]
    assert answerer.ask(seen, asked[0], ANSWERS).text == answerer(picture, asked[0], ANSWERS).text
    assert "image_encoder" in answerer.spec.chain
    assert runs
    assert "image_encoder" not in runs[:3]


def test_a_chat_of_some_questions(
    questions: tuple[Path, Path],
    photograph: Callable[..., Image.Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture = tmp_path / "photograph.png"
    photograph(50, 30, seed=3).save(picture)
    lines = "how many dogs are there?\n" + "cat " * 2000 + "\na cat?\n\nnever asked\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    cli.main(["chat", str(picture), "--model", str(questions[1]), "--max-new-tokens", "6"])
    printed = capsys.readouterr()
    answerer = Answerer(Bundle.open(questions[1]))
    said = printed.out.splitlines()
    assert len(said) == 3
    assert said[0] == answerer(picture, "how many dogs are there?", max_new_tokens=6).text
    assert said[2] == answerer(picture, "a cat?", max_new_tokens=6).text
    assert printed.err.startswith("warning: ")


def test_questions_that_cannot_be_meant(questions: tuple[Path, Path], photograph: Callable[..., Image.Image]) -> None:
    answerer = Answerer(Bundle.open(questions[1]))
    with pytest.raises(UsageError, match="empty question"):
        answerer(photograph(), "  ")
    with pytest.raises(UsageError, match="empty answer"):
        answerer(photograph(), "how many?", ["one", " "])
    with pytest.raises(UsageError, match="`num_beams` is of the search"):
        answerer(photograph(), "how many?", ["one"], num_beams=3)
    with pytest.raises(UsageError, match="1 questions for 2 photographs"):
        answerer.batch([photograph(), photograph()], ["how many?"])
    with pytest.raises(UsageError, match="prompt and answer have 62 tokens, this decoder has room for 40"):
        answerer(photograph(), "how many?", ["cat " * 60])
    assert answerer(photograph(), "犬は何匹いますか").tokens  # another script: unknown words, but a question
    with pytest.warns(TextTruncatedWarning, match="2000 tokens, the model reads 38"):
        answerer(photograph(), "cat " * 2000, max_new_tokens=2)


def test_matches_and_cosines(retrieval: tuple[Path, Path], photograph: Callable[..., Image.Image]) -> None:
    checkpoint, folder = retrieval
    matcher, model = Matcher(Bundle.open(folder)), reference("ImageTextRetrieval", 0)
    processor = transformers.BlipImageProcessor.from_pretrained(checkpoint)
    tokenizer = transformers.BertTokenizerFast.from_pretrained(checkpoint)
    sentences = ["a cat", "two dogs on grass", "how many"]
    probabilities = []
    for seed in range(3):
        picture = photograph(40, 30, seed=seed)
        seen = processor(picture, return_tensors="pt")["pixel_values"]
        found = matcher(picture, sentences)
        for match in found:
            words = tokenizer(match.text, return_tensors="pt")
            given = {"input_ids": words["input_ids"], "attention_mask": words["attention_mask"], "pixel_values": seen}
            with torch.no_grad():
                head = model(**given).itm_score.softmax(-1)[0, 1]
                cosine = model(**given, use_itm_head=False).itm_score
            assert match.judged
            assert match.probability == pytest.approx(float(head), abs=1e-5)
            assert match.score == pytest.approx(float(cosine), abs=1e-5)
        probabilities.append([match.probability for match in found])
    assert np.ptp(probabilities, axis=0).min() > 1e-3, "the image must matter, or nothing is proven"
    assert np.ptp(probabilities, axis=1).min() > 1e-3, "the sentence must matter, or nothing is proven"

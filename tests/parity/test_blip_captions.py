"""BLIP's captions against `BlipForConditionalGeneration.generate` of transformers, on tiny random models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from PIL import Image

from vlrt.bundle import Bundle
from vlrt.cli import main
from vlrt.decode import DecodeOptions, StepModel, generate
from vlrt.decode.scoring import score_continuations
from vlrt.engines import EngineOptions, Sessions
from vlrt.engines.cuda import CudaSession, refuse_unserved
from vlrt.engines.onnxruntime import OnnxRuntimeSession
from vlrt.engines.tensorrt import TensorRtSession
from vlrt.engines.tensorrt_store import AxisRange, Machine
from vlrt.errors import EngineError, UsageError, VlrtError
from vlrt.tasks.caption import Captioner
from vlrt.zoo import Entry
from vlrt_export import cuda_bundle, tensorrt
from vlrt_export.bundle_writer import write_bundle
from vlrt_export.cuda_bundle import write_cuda_bundle
from vlrt_export.families import blip
from vlrt_export.generate_reference import compare, expected_sequences
from vlrt_export.request import Request

SEEDS = range(10)
VOCABULARY, PAD, CLS, SEP, BOS, SIDE = 90, 0, 1, 2, 3, 16
WORDS = ("[PAD]", "[CLS]", "[SEP]", "[DEC]", "[UNK]", "[MASK]", "a", "photo", "of", "##s", "dog", "cat", "two")


def reference(seed: int) -> Any:
    """A model whose every weight is wide, the image's too: as initialised, all images would look the same to it."""
    text = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 40}
    text |= {"bos_token_id": BOS, "sep_token_id": SEP, "pad_token_id": PAD, "eos_token_id": SEP}
    vision = {"hidden_size": 24, "intermediate_size": 40, "image_size": SIDE, "patch_size": 4}
    shape = {"num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BlipConfig(text_config=text | shape, vision_config=vision | shape)
    torch.manual_seed(seed)
    model = transformers.BlipForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.3 if parameter.ndim > 1 else 0.1)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter += 1.0
            if "crossattention.output.dense" in name:
                parameter *= 3.0
        model.text_decoder.cls.predictions.bias[SEP] += 2.0  # some captions end, and some do not
    return model


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    words = [*WORDS, *(f"word{i}" for i in range(VOCABULARY - len(WORDS)))]
    (folder / "vocab.txt").write_text("\n".join(words), "utf-8")
    special = ["[DEC]"]
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"), additional_special_tokens=special)
    tokenizer.save_pretrained(folder)
    transformers.BlipImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def request(folder: Path) -> Request:
    return Request("blip-tiny", Entry("blip", ("caption",), ""), str(folder), options={})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(reference(0), tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def bundle_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "blip-tiny"
    torch.set_num_threads(1)
    write_bundle(blip.build(request(checkpoint)), folder)
    return folder


@pytest.fixture(scope="module")
def models(
    bundle_folder: Path, checkpoint: Path, reweighed: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[Any, Any]]:
    """Per seed transformers' model and our graphs with its weights."""
    found = []
    for seed in SEEDS:
        model, folder = reference(seed), tmp_path_factory.mktemp(f"seed{seed}")
        plan = blip.build(request(save(model, folder)))
        found.append((model, reweighed.Reweighed(bundle_folder, plan, folder)))
    return found


def pixels(seed: int, images: int) -> Any:
    return torch.randn(images, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def ours(graphs: Any, seen: Any, prompts: list[list[int]], options: dict[str, Any]) -> Any:
    initial = graphs.run_chain(graphs.manifest.decode.chain, {"pixels": seen.numpy()})
    return generate(graphs.step(), initial, DecodeOptions(**options), prompts=prompts)


def theirs(model: Any, seen: Any, prompts: list[list[int]], options: dict[str, Any]) -> Any:
    """What `BlipProcessor` would give, start and end included; the library replaces the one and drops the other."""
    ids = torch.tensor([[CLS, *prompt[1:], SEP] for prompt in prompts])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} if len(prompts[0]) > 1 else {}

    def run(**chosen: Any) -> Any:
        return model.generate(pixel_values=seen, **given, **chosen)

    return expected_sequences(run, len(prompts[0]), (SEP,), {"do_sample": False, **options})


@pytest.mark.parametrize(("images", "prompt"), [(1, 1), (3, 1), (2, 4)])
@pytest.mark.parametrize("beams", [1, 3, 5])
def test_sequences_and_scores(models: list[tuple[Any, Any]], beams: int, images: int, prompt: int) -> None:
    ended = set()
    for seed, (model, graphs) in enumerate(models):
        seen, random = pixels(seed, images), np.random.default_rng(seed)
        prompts = [[BOS, *random.integers(5, VOCABULARY, prompt - 1).tolist()] for _ in range(images)]
        options = {"num_beams": beams, "num_return_sequences": beams, "max_new_tokens": 12}
        found = ours(graphs, seen, prompts, options)
        agreement = compare(found, theirs(model, seen, prompts, options))
        assert agreement.different == 0, f"seed {seed}"
        assert agreement.ambiguous == 0, f"seed {seed} hangs on a tie: choose another"
        assert agreement.score_error < 1e-4
        ended |= {hypothesis.finished for image in found for hypothesis in image}
    assert ended == {True, False}, "the models should end some captions and not others, or little is tested"


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "length_penalty": 0.0, "early_stopping": True},
        {"num_beams": 4, "length_penalty": 2.0, "early_stopping": "never", "num_return_sequences": 2},
        {"num_beams": 3, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_new_tokens": 4},
        {"num_beams": 1, "repetition_penalty": 1.5, "min_length": 6},
    ],
    ids=["short", "long", "rules", "greedy rules"],
)
def test_options_mean_the_same(models: list[tuple[Any, Any]], options: dict[str, Any]) -> None:
    for seed, (model, graphs) in enumerate(models):
        seen, prompts = pixels(seed, 2), [[BOS, 20, 30]] * 2
        chosen = {"max_new_tokens": 10, **options}
        agreement = compare(ours(graphs, seen, prompts, chosen), theirs(model, seen, prompts, chosen))
        assert agreement.different == 0, f"seed {seed}"
        assert agreement.score_error < 1e-4


def test_prompts_of_different_lengths_equal_single_runs(models: list[tuple[Any, Any]]) -> None:
    prompts = [[BOS], [BOS, 20, 30, 40, 50], [BOS, 60], [BOS, 70, 71, 72]]
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 10}
    for seed, (model, graphs) in enumerate(models[:5]):
        seen = pixels(seed, len(prompts))
        for i, found in enumerate(ours(graphs, seen, prompts, options)):
            agreement = compare([found], theirs(model, seen[i : i + 1], [prompts[i]], options))
            assert agreement.different == 0
            assert agreement.score_error < 1e-4


def test_different_images_give_different_captions(models: list[tuple[Any, Any]]) -> None:
    """Or all of the above would be proven of a model that does not look."""
    for seed, (_, graphs) in enumerate(models):
        found = ours(graphs, pixels(seed, 2), [[BOS], [BOS]], {"max_new_tokens": 10, "min_new_tokens": 10})
        assert found[0][0].tokens != found[1][0].tokens, f"seed {seed}"


@pytest.mark.parametrize("kernels", ["", "always"])
def test_from_photograph_to_sentence(
    bundle_folder: Path,
    checkpoint: Path,
    photograph: Callable[..., Image.Image],
    kernels: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The whole way, against the library's own processor and tokenizer."""
    monkeypatch.setenv("VLRT_KERNELS", kernels)  # these graphs are too small for ours to be prepared unasked
    captioner = Captioner(Bundle.open(bundle_folder))
    processor = transformers.BlipProcessor(
        transformers.BlipImageProcessor.from_pretrained(checkpoint),
        transformers.BertTokenizerFast.from_pretrained(checkpoint),
    )
    model = reference(0)
    for text in ("", "a photo of", "two dogs"):
        pictures = [photograph(50, 30, seed=1), photograph(33, 47, seed=2)]
        given = processor(images=pictures, text=[text] * 2 if text else None, return_tensors="pt")
        expected = model.generate(**given, num_beams=3, max_new_tokens=8, do_sample=False)
        sentences = processor.batch_decode(expected, skip_special_tokens=True)
        found = captioner.batch(pictures, prompt=text, num_beams=3, max_new_tokens=8)
        assert [caption.text for caption in found] == [sentence.strip() for sentence in sentences]
        assert all(caption.text.startswith(text) for caption in found)
    together = captioner.batch(pictures, prompt=["", "a photo"], max_new_tokens=8)
    assert together[1].text == captioner(pictures[1], prompt="a photo", max_new_tokens=8).text


def test_prompts_that_cannot_be_meant(bundle_folder: Path, photograph: Callable[..., Image.Image]) -> None:
    captioner = Captioner(Bundle.open(bundle_folder))
    with pytest.raises(UsageError, match="has 61 tokens with its start, this decoder has room for 40"):
        captioner(photograph(), prompt="a dog " * 30)
    with pytest.raises(UsageError, match="1 prompts for 2 photographs"):
        captioner.batch([photograph(), photograph()], prompt=["a"])


def damaged(checkpoint: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> str:
    """What loading says after `change` of the tensors."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(checkpoint / "model.safetensors")
    change(tensors)
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(VlrtError) as caught:
        blip.build(request(folder))
    return caught.value.what


NORM = "vision_model.post_layernorm.weight"
KEY = "text_decoder.bert.encoder.layer.0.attention.self.key.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NORM), f"lacks the tensor `{NORM}`"),
        (lambda t: t.update({"text_decoder.extra": torch.ones(3)}), "unexpected tensor `text_decoder.extra` [3]"),
        (lambda t: t.update({NORM: torch.ones(7)}), f"`{NORM}` of `wrong0` has shape [7], expected [24]"),
        (lambda t: t.update({KEY: torch.ones(32, 9)}), f"`{KEY}` of `wrong0` has shape [32, 9], expected [32, 32]"),
        (
            lambda t: t.update({NORM: torch.ones(24, dtype=torch.int64)}),
            f"`{NORM}` of `wrong0` has dtype `torch.int64`",
        ),
        (lambda t: [t.pop(n) for n in list(t) if n.startswith("text")], "no BLIP for captions, questions or retrieval"),
    ],
    ids=["missing", "surplus", "shape", "joined shape", "dtype", "another model"],
)
def test_damaged_checkpoints_name_the_tensor(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, change: Any, message: str
) -> None:
    folder = tmp_path_factory.mktemp("wrong")
    said = damaged(checkpoint, folder, change).replace(folder.name, "wrong0")
    assert message in said


def test_a_missing_shard_is_named(checkpoint: Path, tmp_path: Path) -> None:
    reference(0).save_pretrained(tmp_path, max_shard_size="30KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[1].unlink()
    with pytest.raises(VlrtError, match=f"lacks `{shards[1].name}`"):
        blip.build(request(tmp_path))


# --- for GPUs


@pytest.fixture(scope="module")
def halves(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same bundle with products, attention and caches in fp16."""
    target = tmp_path_factory.mktemp("halves") / "blip-cuda"
    write_cuda_bundle(Bundle.open(bundle_folder), target)
    return Bundle.open(target)


def step_model(bundle: Bundle) -> StepModel:
    assert bundle.manifest.decode is not None
    return StepModel.open(bundle.manifest.decode, Sessions(bundle, EngineOptions(threads=1)).get)


def test_a_bundle_for_gpus_scores_as_the_one_in_fp32(bundle_folder: Path, halves: Bundle) -> None:
    whole = Bundle.open(bundle_folder)
    assert whole.manifest.decode is not None
    chain, seen = whole.manifest.decode.chain, {"pixels": pixels(5, 1).numpy()}
    continuations = [[40, 7, SEP], [11, 12, 13, 14], [60, SEP]]
    scores = [
        score_continuations(step_model(bundle), Sessions(bundle).run_chain(chain, seen), [BOS], continuations)
        for bundle in (whole, halves)
    ]
    assert scores[1] == pytest.approx(scores[0], abs=0.05)
    assert scores[1] != scores[0]


def test_a_bundle_for_gpus_keeps_its_caches_in_halves(bundle_folder: Path, halves: Bundle) -> None:
    """As the CUDA provider's attention wants them; the one in fp32 it would leave to the CPU."""
    spec, path = halves.graph("decoder_step")
    assert {t.dtype for t in (*spec.inputs, *spec.outputs) if t.name.startswith(("key", "next_"))} == {"float16"}
    assert {t.dtype for t in spec.inputs if t.name.startswith("memory")} == {"float32"}
    refuse_unserved(spec, path)
    with pytest.raises(EngineError, match="in float32") as caught:
        refuse_unserved(*Bundle.open(bundle_folder).graph("decoder_step"))
    assert "--target cuda" in caught.value.hint
    kinds = {line.stage.split(",")[0] for line in halves.manifest.certificate}
    assert kinds == {"fp32", "fp16 for CUDA"}


@pytest.mark.parametrize("num_beams", [1, 3])
def test_captions_with_caches_on_a_device(halves: Bundle, fake_device: ModuleType, num_beams: int) -> None:
    decode = halves.manifest.decode
    assert decode is not None
    initial = Sessions(halves).run_chain(decode.chain, {"pixels": pixels(6, 3).numpy()})
    options, prompts = DecodeOptions(num_beams=num_beams, max_new_tokens=12), [[BOS], [BOS, 20, 21], [BOS, 30]]
    expected = generate(step_model(halves), initial, options, prompts=prompts)
    loaded = OnnxRuntimeSession(*halves.graph(decode.step), EngineOptions(threads=1))
    memory = fake_device.FakeMemory()
    there = CudaSession(fake_device.session_on(loaded, memory), memory, onnxruntime, captures=False)
    found = generate(StepModel(decode, there), initial, options, prompts=prompts)
    assert [h.tokens for image in found for h in image] == [h.tokens for image in expected for h in image]


def test_tensorrt_reads_the_portable_form_of_both(
    bundle_folder: Path, halves: Bundle, fake_device: ModuleType, fake_tensorrt: ModuleType
) -> None:
    """Whole decoder graphs, cross-attention and all, decode the same without ONNX Runtime's own operator."""
    ranges = {"rows": 9, "width": 4, "positions": 40, "images": 3}
    profile = {axis: AxisRange(1, 1, largest) for axis, largest in ranges.items()}
    machine = Machine("Made Up", "9.0", "10.16")
    for bundle in (Bundle.open(bundle_folder), halves):
        spec, path = bundle.graph("decoder_step")
        plan = tensorrt._Build(fake_tensorrt, machine, spec, lambda line: None).build(path, [profile])
        there = TensorRtSession(spec, plan, fake_device.FakeMemory(), fake_tensorrt)
        model = step_model(bundle)
        initial = Sessions(bundle).run_chain(model.spec.chain, {"pixels": pixels(7, 3).numpy()})
        options = DecodeOptions(num_beams=3, max_new_tokens=10)
        prompts = [[BOS], [BOS, 20, 21], [BOS, 30]]
        expected = generate(model, initial, options, prompts=prompts)
        found = generate(StepModel(model.spec, there), initial, options, prompts=prompts)
        close = 1e-3 if bundle is not halves else 0.05
        assert [h.score for image in found for h in image] == pytest.approx(
            [h.score for image in expected for h in image], abs=close
        )


def test_what_is_too_far_off_is_not_written(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cuda_bundle._LIMITS, "max error / std", 1e-6)
    with pytest.raises(VlrtError, match=r"`fp16 for CUDA, image\.image_states` fails parity"):
        write_cuda_bundle(Bundle.open(bundle_folder), tmp_path / "cuda")
    assert not list(tmp_path.iterdir())


def test_the_command_for_gpus(
    bundle_folder: Path, halves: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "cuda"
    main(["export", "blip-base", "--source", str(bundle_folder), "--target", "cuda", "-o", str(target)])
    assert "all within their limits" in capsys.readouterr().out
    assert Bundle.open(target).manifest.graphs == halves.manifest.graphs
    with pytest.raises(SystemExit):
        main(["export", "blip-base", "--source", str(target), "--target", "cuda", "-o", str(tmp_path / "again")])
    assert "not a bundle of ours in fp32" in capsys.readouterr().err

# ruff: noqa: N999
"""Types of the C++ extension; the sources are in `cpp_ext/bindings`."""

from collections.abc import Callable, Sequence
from typing import Any

from numpy import float32, float64, int32, int64, uint8
from numpy.typing import NDArray

class ScoreError(RuntimeError): ...

class Rule:
    hf: Rule
    classic: Rule

class EarlyStopping:
    off: EarlyStopping
    on: EarlyStopping
    never: EarlyStopping

class SearchOptions:
    rule: Rule
    num_beams: int
    num_return_sequences: int
    max_new_tokens: int
    length_penalty: float
    early_stopping: EarlyStopping
    do_sample: bool
    end_ids: list[int]

class LogitsOptions:
    repetition_penalty: float
    no_repeat_ngram_size: int
    bad_words_ids: Sequence[Sequence[int]]
    min_length: int
    min_new_tokens: int
    max_new_tokens: int
    end_ids: Sequence[int]
    forced_bos_id: int
    forced_eos_ids: Sequence[int]
    suppress_tokens: Sequence[int]
    begin_suppress_tokens: Sequence[int]
    warp: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    min_tokens_to_keep: int
    renormalize: bool

class LogitsProcessors:
    def __init__(self, options: LogitsOptions, vocabulary: int) -> None: ...
    def apply(self, scores: NDArray[float32], tokens: Sequence[int], prompt_length: int) -> None: ...

def log_softmax(scores: NDArray[float32]) -> None: ...

class KvCache:
    def __init__(self, max_rows: int, heads: int, max_length: int, head_dim: int, element_bytes: int = 4) -> None: ...
    @property
    def bytes(self) -> NDArray[uint8]: ...
    def reorder(self, parents: Sequence[int], lengths: Sequence[int]) -> None: ...
    def broadcast(self, source: int, first: int, count: int, length: int) -> None: ...

def row_moves(parents: Sequence[int], max_rows: int) -> list[tuple[int, int]]: ...

class TorchGenerator:
    def __init__(self, seed: int = 0) -> None: ...
    def seed(self, seed: int) -> None: ...
    def random(self) -> int: ...
    def rand(self, count: int) -> NDArray[float32]: ...
    def rand_double(self, count: int) -> NDArray[float64]: ...
    def randn(self, count: int) -> NDArray[float32]: ...
    def randn_double(self, count: int) -> NDArray[float64]: ...
    def randint(self, low: int, high: int, count: int) -> NDArray[int64]: ...
    def multinomial(self, probabilities: NDArray[float32]) -> int: ...

class Hypothesis:
    @property
    def tokens(self) -> list[int]: ...
    @property
    def score(self) -> float: ...
    @property
    def log_probability(self) -> float: ...
    @property
    def finished(self) -> bool: ...
    @property
    def records(self) -> list[NDArray[uint8]]: ...

class Decoder:
    def __init__(
        self,
        *,
        vocabulary: int,
        max_images: int,
        max_rows: int,
        max_steps: int,
        max_width: int = 1,
        patterns: Sequence[tuple[str, int, Sequence[Sequence[int]]]] = (),
        caches: Sequence[tuple[Any, ...]] = (),
        recurrent: Sequence[tuple[str, int]] = (),
        shifts: Sequence[tuple[str, int, int, int]] = (),
        memory: Sequence[tuple[str, int]] = (),
        noise: Sequence[tuple[str, int]] = (),
        records: Sequence[tuple[str, int]] = (),
    ) -> None: ...
    @property
    def tokens(self) -> NDArray[int64]: ...
    @property
    def positions(self) -> NDArray[int64]: ...
    @property
    def past_lengths(self) -> NDArray[int32]: ...
    @property
    def new_lengths(self) -> NDArray[int32]: ...
    @property
    def last_positions(self) -> NDArray[int32]: ...
    @property
    def sources(self) -> NDArray[int32]: ...
    @property
    def total_length(self) -> NDArray[int32]: ...
    @property
    def logits(self) -> NDArray[float32]: ...
    def pattern_last(self, name: str) -> NDArray[int32]: ...
    def pattern_total(self, name: str) -> NDArray[int32]: ...
    def cache(self, name: str) -> NDArray[uint8]: ...
    def state_input(self, name: str) -> NDArray[uint8]: ...
    def state_output(self, name: str) -> NDArray[uint8]: ...
    def shift_input(self, name: str) -> NDArray[uint8]: ...
    def shift_output(self, name: str) -> NDArray[uint8]: ...
    def memory(self, name: str) -> NDArray[uint8]: ...
    def noise(self, name: str) -> NDArray[uint8]: ...
    def record(self, name: str) -> NDArray[uint8]: ...
    def run(
        self,
        *,
        search: SearchOptions,
        logits: LogitsOptions,
        seed: int,
        prompts: Sequence[Sequence[int]],
        recurrent: Sequence[NDArray[Any]],
        memory: Sequence[NDArray[Any]],
        step: Callable[[int, int, int], object],
        on_token: Callable[[int, int], object] | None = None,
        should_cancel: Callable[[], bool] | None = None,
        prefix_length: int = 0,
        keep_records: bool = True,
        guidance_scale: float = 1.0,
    ) -> list[list[Hypothesis]]: ...

class PredictionError(RuntimeError): ...

class Betas:
    linear: Betas
    scaled_linear: Betas
    squared_cosine: Betas
    explicit: Betas

class Spacing:
    leading: Spacing
    trailing: Spacing
    linspace: Spacing
    listed: Spacing

class UpdateKind:
    ddim: UpdateKind
    ddpm: UpdateKind
    pndm: UpdateKind
    euler: UpdateKind
    euler_ancestral: UpdateKind
    heun: UpdateKind
    dpm_solver: UpdateKind
    lcm: UpdateKind
    unclip: UpdateKind
    consistency: UpdateKind

class Prediction:
    epsilon: Prediction
    v: Prediction
    sample: Prediction

class Variance:
    fixed_small: Variance
    fixed_small_log: Variance
    fixed_large: Variance
    learned: Variance
    learned_range: Variance

class FinalSigma:
    zero: FinalSigma
    sigma_min: FinalSigma

class Part:
    both: Part
    unconditional: Part
    conditional: Part

class NoiseSchedule:
    def __init__(
        self,
        *,
        betas: Betas,
        train_steps: int,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        values: Sequence[float] = (),
        zero_terminal_snr: bool = False,
    ) -> None: ...
    @property
    def betas(self) -> NDArray[float32]: ...
    @property
    def alphas_cumprod(self) -> NDArray[float32]: ...

def section_timesteps(sections: str, train_steps: int) -> list[int]: ...

class UpdateOptions:
    kind: UpdateKind
    steps: int
    prediction: Prediction
    variance: Variance
    spacing: Spacing
    timesteps: Sequence[int]
    steps_offset: int
    set_alpha_to_one: bool
    clip_range: float
    dynamic_threshold: bool
    threshold_ratio: float
    threshold_maximum: float
    eta: float
    rederive_epsilon: bool
    skip_prk_steps: bool
    karras_sigmas: bool
    final_sigma: FinalSigma
    solver_order: int
    lower_order_final: bool
    original_steps: int
    timestep_scaling: float

class UpdateRule:
    def __init__(self, schedule: NoiseSchedule, options: UpdateOptions) -> None: ...
    @property
    def init_noise_sigma(self) -> float: ...
    @property
    def order(self) -> int: ...
    @property
    def evaluations(self) -> list[tuple[float, float, float, float, bool]]: ...

class GuidanceOptions:
    scale: float
    rescale: float
    start: float
    stop: float
    channels: int

class SamplingOptions:
    guidance: GuidanceOptions
    two_passes: bool
    start: int
    noise_copies: int
    always_draws: bool
    replaces: bool

class Denoiser:
    def __init__(self, *, images: int, channels: int, output_channels: int, pixels: int) -> None: ...
    @property
    def sample(self) -> NDArray[float32]: ...
    @property
    def denoised(self) -> NDArray[float32]: ...
    @property
    def gradient(self) -> NDArray[float32]: ...
    @property
    def model_input(self) -> NDArray[float32]: ...
    @property
    def timesteps(self) -> NDArray[int64]: ...
    @property
    def real_timesteps(self) -> NDArray[float32]: ...
    @property
    def model_output(self) -> NDArray[float32]: ...
    def run(
        self,
        *,
        rule: UpdateRule,
        options: SamplingOptions,
        generators: Sequence[TorchGenerator],
        predict: Callable[[Part, int, int], object],
        known_sample: NDArray[float32] | None = None,
        known_noise: NDArray[float32] | None = None,
        known_mask: NDArray[float32] | None = None,
        gradient: Callable[[int], object] | None = None,
        on_step: Callable[[int, int], object] | None = None,
        should_cancel: Callable[[], bool] | None = None,
    ) -> int: ...

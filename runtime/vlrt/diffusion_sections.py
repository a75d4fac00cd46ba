"""The diffusion section of a manifest: schedules, stages, and how text and pictures reach them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from vlrt.sections import ImageSpec, TextSpec, refuse

RULES = (
    *("ddim", "ddpm", "pndm", "euler", "euler-ancestral", "heun"),
    *("dpm++2m", "lcm", "unclip", "consistency"),
)
"""Names of the update rules, as `--scheduler` takes them."""

_LARGEST_SAMPLE = 1 << 28
"""Numbers of one sample; beyond it a shape is an attack or a mistake."""


@dataclass(frozen=True)
class ThresholdSpec:
    """Dynamic thresholding of a predicted picture (Saharia et al. 2022, section 2.3): quantile and largest bound."""

    ratio: float = 0.995
    maximum: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1 or not self.maximum >= 1:
            raise refuse(f"dynamic thresholding: ratio {self.ratio} must lie in (0, 1], the maximum not below 1")


@dataclass(frozen=True)
class ScheduleSpec:
    """The noise a model was trained with, and how sampling walks through it.

    Args:
        betas: how the variances of the forward process grow; ``explicit`` takes `values`.
        train_steps: timesteps of training.
        beta_start, beta_end: first and last variance of ``linear`` and ``scaled_linear``.
        prediction: what the denoiser predicts: the noise, the velocity, or the clean sample.
        variance: of a step that adds noise; the learned ones come as further channels of the prediction.
        spacing: which timesteps `n` steps visit; ``sections`` counts them per section of the training as `sections`
            says (``fast27``, ``ddim50``, ``10,10,5``), ``explicit`` visits `timesteps`.
        respaced: whether the variances are computed anew for the visited timesteps (Nichol and Dhariwal 2021), as GLIDE
            does; the denoiser still reads the original timesteps.
        steps_offset: added to every timestep of the ``leading`` spacing.
        set_alpha_to_one: whether the step after the last visited timestep has no noise at all, rather than the first
            timestep's.
        clip_sample: bound of a predicted picture; 0 leaves it.
        threshold: dynamic thresholding in place of `clip_sample`.
        zero_terminal_snr: whether the variances are rescaled so that the last timestep is pure noise (Lin et al. 2023).
        karras_sigmas, solver_order, lower_order_final, final_sigma, skip_prk_steps: of the rules that know them.
        original_steps, timestep_scaling: of latent consistency models: the solver's steps they were distilled with, and
            the scale of the boundary condition.
    """

    betas: Literal["linear", "scaled_linear", "squared_cosine", "explicit"] = "linear"
    train_steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    values: tuple[float, ...] = ()
    prediction: Literal["epsilon", "v", "sample"] = "epsilon"
    variance: Literal[
        "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"
    ] = "fixed_small"
    spacing: Literal["leading", "trailing", "linspace", "sections", "explicit"] = "leading"
    sections: str = ""
    timesteps: tuple[int, ...] = ()
    respaced: bool = False
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    clip_sample: float = 0.0
    threshold: ThresholdSpec | None = None
    zero_terminal_snr: bool = False
    karras_sigmas: bool = False
    solver_order: int = 2
    lower_order_final: bool = True
    final_sigma: Literal["zero", "sigma_min"] = "zero"
    skip_prk_steps: bool = True
    original_steps: int = 50
    timestep_scaling: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.train_steps <= 100_000:
            raise refuse(f"schedule: {self.train_steps} training steps are outside 1 to 100,000")
        if self.betas == "explicit" and len(self.values) != self.train_steps:
            raise refuse(f"schedule: {len(self.values)} explicit variances for {self.train_steps} training steps")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise refuse(f"schedule: variances from {self.beta_start} to {self.beta_end} must rise within 0 to 1")
        if self.spacing == "explicit" and not self.timesteps:
            raise refuse("schedule: the explicit spacing needs its timesteps")
        if any(not 0 <= t < self.train_steps for t in self.timesteps):
            raise refuse(f"schedule: an explicit timestep lies outside 0 to {self.train_steps - 1}")
        if not 0 <= self.steps_offset <= self.train_steps:
            raise refuse(f"schedule: an offset of {self.steps_offset} is outside 0 to {self.train_steps}")
        if not (1 <= self.original_steps <= 100_000 and 1 <= self.solver_order <= 9):
            raise refuse("schedule: `original_steps` must be 1 to 100,000, `solver_order` 1 to 9")


@dataclass(frozen=True)
class PromptSpec:
    """One text encoder: how a prompt becomes ids, and the roles that turn them into named arrays.

    Args:
        text: tokenizer and ids; ids are padded to the context where it says so.
        chain: roles run once per prompt; their outputs are known by name to every stage.
        mask: input of the chain that takes 1 for a prompt's ids and 0 for padding, int64 [N, L]; empty where none does.
        lowercase: whether prompts are put into lower case and stripped first, as some references do.
    """

    text: TextSpec
    chain: tuple[str, ...]
    mask: str = ""
    lowercase: bool = False


@dataclass(frozen=True)
class LowResolutionSpec:
    """How a stage takes the picture before it.

    Args:
        source: name of the array with that picture, [N, 3, h, w] in −1 to 1; of the photograph in an upscaling task.
        input: name under which the stage's graphs take it.
        resize: to the stage's own height and width before that; ``none`` where the graphs do it.
        noise_level: timestep of the noise that is added to it; negative: none is.
        noise_schedule: schedule of that noise.
        noise_input: graph input [N] int64 that takes the noise level; empty where none does.
        drawn: whether that noise is drawn before or after the stage's first sample, as the reference's generator does.
        quantised: whether it is rounded to the 256 levels of a picture file before it is resized, as GLIDE does.
    """

    source: str
    input: str
    resize: Literal["none", "bilinear", "bilinear_aligned", "bicubic", "bicubic_antialiased"] = "none"
    noise_level: int = -1
    noise_schedule: ScheduleSpec | None = None
    noise_input: str = ""
    drawn: Literal["before", "after"] = "after"
    quantised: bool = False

    def __post_init__(self) -> None:
        if self.noise_level >= 0 and self.noise_schedule is None:
            raise refuse(f"a noise level of {self.noise_level} needs the schedule of that noise")


@dataclass(frozen=True)
class StageSpec:
    """One denoiser and the loop around it.

    Every array is known by name: outputs of the prompts' chains, results of earlier stages, what a task is given
    (``mask``, …), outputs of `prepare`. Denoiser inputs other than `sample_input` and `timestep_input` are found there;
    all have one row per picture, and the loop stacks unconditional and conditional rows, in this order.

    Args:
        name: what errors and progress call it.
        denoiser: role of the graph: sample [R, *shape], timestep [R], conditions -> prediction [R, …].
        shape: of one sample without the batch, at the default size: (channels, height, width), or (width,) of an
            embedding.
        schedule, rule, steps, guidance: what sampling does by default.
        rules: further rules that ``--scheduler`` may name.
        schedules: of those rules, by name, where it is not `schedule`: reference schedulers differ in what they take
            for a number that a model's configuration leaves out.
        prepare: roles run once before the loop on conditional arrays and, with guidance, on unconditional ones.
        prepare_unconditional: roles run instead of `prepare` for the unconditional rows, where those differ.
        zeroed: arrays that are all zero in unconditional rows.
        finish: roles run once on the result, which the first of them takes as `finish_input`.
        output: name under which later stages know the result (of `finish`, where there is one); the last stage's is
            the picture in −1 to 1.
        factor: pixels of the finished picture per sample row and column (8 for a latent of an autoencoder f8).
        multiple: sample heights and widths must be multiples of it; 0: only those of `shape`.
        guided_channels: channels the guidance applies to; 0: all of the mean, never the learned variance.
        guidance_rescale: Lin et al. 2023, equations 15 and 16; 0: none.
        low_resolution: how the picture before is taken, for super-resolution.
        last_denoiser: role of another denoiser for the last step; empty: the same one.
        latent_scale, latent_shift: the finish chain gets ``sample / latent_scale + latent_shift``.
        preview: linear map [channels, 3] from a latent to RGB in −1 to 1 for previews; empty: the sample itself is a
            picture, or none can be shown.
        guidance_embedding: input [R, …] of a denoiser that was distilled with guidance and takes its strength, and the
            width of its sinusoidal embedding; empty and 0: none.
        noise_scale: what the noise of the first sample is multiplied with (GLIDE's "temperature" of its upsampler).
        paired_noise: whether, with guidance, every draw is followed by another of the same size that nothing uses:
            GLIDE draws for the unconditional rows too, and the next draw must continue where its generator stands.
        final_noise: whether noise is also drawn, and not used, in steps that add none (the last, and all of DDIM's
            without eta), as GLIDE's sampler does; a stage after it continues the same generator.
        gradient: role of a graph that gives the gradient of a score of the noisy sample (sample, timestep, conditions
            by name -> `gradient`, of sample's shape): its product with the variance and a strength shifts the mean
            (Dhariwal and Nichol 2021, algorithm 1), with a strength above 0 only.
        gradient_guidance: default of that strength.
        tile: rows and columns of the sample that an autoencoder's graphs (`finish`, and `encode` of the first stage)
            take at once where a picture is worked on in tiles; 0: they cannot be.
        tile_overlap: share of a tile that overlaps with the next one.
    """

    name: str
    denoiser: str
    shape: tuple[int, ...]
    schedule: ScheduleSpec
    rule: str
    steps: int
    output: str = "picture"
    guidance: float = 1.0
    rules: tuple[str, ...] = ()
    schedules: dict[str, ScheduleSpec] = field(default_factory=dict)
    prepare: tuple[str, ...] = ()
    prepare_unconditional: tuple[str, ...] = ()
    zeroed: tuple[str, ...] = ()
    finish: tuple[str, ...] = ()
    finish_input: str = "latents"
    factor: int = 1
    multiple: int = 0
    guided_channels: int = 0
    guidance_rescale: float = 0.0
    low_resolution: LowResolutionSpec | None = None
    last_denoiser: str = ""
    latent_scale: float = 1.0
    latent_shift: float = 0.0
    preview: tuple[tuple[float, float, float], ...] = ()
    guidance_embedding: str = ""
    guidance_width: int = 0
    sample_input: str = "sample"
    timestep_input: str = "timestep"
    prediction_output: str = "prediction"
    noise_scale: float = 1.0
    paired_noise: bool = False
    final_noise: bool = False
    gradient: str = ""
    gradient_guidance: float = 0.0
    tile: int = 0
    tile_overlap: float = 0.25

    def __post_init__(self) -> None:
        unknown = [rule for rule in (self.rule, *self.rules) if rule not in RULES]
        if unknown:
            raise refuse(f"stage `{self.name}` names the rule `{unknown[0]}`, known are {', '.join(RULES)}")
        stray = [rule for rule in self.schedules if rule not in self.rules]
        if stray:
            raise refuse(f"stage `{self.name}` has a schedule for `{stray[0]}`, which is none of its rules")
        fits = all(0 < axis <= 8192 for axis in self.shape) and math.prod(self.shape) <= _LARGEST_SAMPLE
        if len(self.shape) not in (1, 3) or not fits:
            raise refuse(f"stage `{self.name}` has samples of the absurd shape {list(self.shape)}")
        if not 0 < self.steps <= self.schedule.train_steps:
            raise refuse(f"stage `{self.name}` has {self.steps} steps, trained were {self.schedule.train_steps}")
        if not self.latent_scale or self.factor < 1 or self.multiple < 0:
            raise refuse(f"stage `{self.name}`: the latent scale must not be zero, factor and multiple not negative")
        if self.preview and len(self.preview) != self.shape[0]:
            raise refuse(f"stage `{self.name}` has a preview of {len(self.preview)} channels, and {self.shape[0]}")
        if self.guidance_embedding and not 4 <= self.guidance_width <= 1 << 16:
            raise refuse(f"stage `{self.name}` embeds its guidance in {self.guidance_width} numbers")
        if self.tile < 0 or not 0 <= self.tile_overlap < 1 or (self.tile and self.tile * (1 - self.tile_overlap) < 1):
            raise refuse(f"stage `{self.name}`: tiles of {self.tile} rows overlapping by {self.tile_overlap} cannot be")

    def schedule_of(self, rule: str) -> ScheduleSpec:
        """What one of the stage's rules walks down."""
        return self.schedules.get(rule, self.schedule)

    @property
    def roles(self) -> tuple[str, ...]:
        """Every graph that the stage needs, each once."""
        more = tuple(filter(None, (self.last_denoiser, self.gradient)))
        return tuple(dict.fromkeys((*self.prepare, *self.prepare_unconditional, self.denoiser, *more, *self.finish)))


@dataclass(frozen=True)
class InpaintSpec:
    """How a stage keeps what a mask does not cover.

    Args:
        kind: ``channels``: mask and masked picture are inputs of the denoiser; ``blend``: after every step the kept
            part is put back with that step's noise; ``replace``: the predicted clean sample's kept part is replaced
            by the picture's (and where the inputs are named, they are given too). The photograph is then resized to
            every stage's own size (Pillow's bicubic), the mask to the first stage's size and from that to the others'
            (both by nearest neighbours).
        mask_input: array [N, 1, h, w], 1 where it is to be painted; empty for ``blend``.
        masked_input: array with the masked picture in the stage's own space.
    """

    kind: Literal["channels", "blend", "replace"]
    mask_input: str = ""
    masked_input: str = ""
    mask_keeps: bool = False
    """Whether the mask the graphs take is 1 where the picture is kept, as GLIDE's is."""


@dataclass(frozen=True)
class DiffusionSpec:
    """A list of stages from words (or pictures) to a picture.

    Args:
        stages: run in order; each may read what those before it gave.
        prompts: text encoders, each run before the first stage on the prompt and, with guidance, the negative one.
        encode: roles that turn a picture [N, 3, H, W] in −1 to 1 (input ``picture``) into the mean and the
            standard deviation (outputs ``latent_mean``, ``latent_std``) of the first stage's latents; empty for
            models that work on pixels.
        encode_scale: what an encoded latent is multiplied with.
        edit_strength: default of the task ``edit``; the share of the schedule that is walked.
        inpaint: per stage name, how inpainting is done; empty where the bundle cannot.
        image: preprocessing of the photograph whose embedding variations start from.
        image_chain: roles from those pixels to `image_embedding`.
        variation_start: name of the first stage of the task ``variations``.
        upscale_start: name of the first stage of the task ``upscale``.
        labels: names of the classes of a class-conditional model, which takes `label_input`.
        label_input: name of the array [N] int64 with the class; empty where there is none.
        embedding: name under which stages know the image's (or the prior's) embedding [N, D].
        text_embedding: name of the prompt's output that is the text's embedding, for text diffs.
        max_size: largest height and width in pixels.
    """

    stages: tuple[StageSpec, ...]
    prompts: tuple[PromptSpec, ...] = ()
    encode: tuple[str, ...] = ()
    encode_scale: float = 1.0
    edit_strength: float = 0.8
    inpaint: dict[str, InpaintSpec] = field(default_factory=dict)
    image: ImageSpec | None = None
    image_chain: tuple[str, ...] = ()
    variation_start: str = ""
    upscale_start: str = ""
    labels: tuple[str, ...] = ()
    label_input: str = ""
    embedding: str = "image_embedding"
    text_embedding: str = "text_embedding"
    max_size: int = 2048

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) < len(names):
            raise refuse(f"diffusion section: needs stages of different names, got {names}")
        for wanted in (*self.inpaint, *filter(None, (self.variation_start, self.upscale_start))):
            if wanted not in names:
                raise refuse(f"diffusion section: there is no stage `{wanted}` among {', '.join(names)}")
        flat = [s.name for s in self.stages if len(s.shape) == 1 and (s.name in self.inpaint or s.low_resolution)]
        if flat:
            raise refuse(f"diffusion section: the stage `{flat[0]}` makes no picture to keep or to enlarge")
        if not 0 < self.max_size <= 1 << 16:
            raise refuse(f"diffusion section: pictures of up to {self.max_size} pixels cannot be meant")

    @property
    def roles(self) -> tuple[str, ...]:
        """Every graph that the section names, each once."""
        chains = [role for prompt in self.prompts for role in prompt.chain]
        stages = [role for stage in self.stages for role in stage.roles]
        return tuple(dict.fromkeys((*chains, *self.encode, *self.image_chain, *stages)))

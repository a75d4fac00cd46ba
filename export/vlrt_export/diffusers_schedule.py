"""Diffusers' `scheduler_config.json` as a schedule and the name of an update rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vlrt.diffusion_sections import ScheduleSpec, ThresholdSpec
from vlrt.errors import VlrtError

LATENT_RULES = ("ddim", "pndm", "euler", "euler-ancestral", "heun", "dpm++2m", "ddpm")
"""Rules that a model of the noise or the velocity in a latent space may be sampled with."""

PIXEL_RULES = ("ddpm", "ddim", "euler", "heun", "dpm++2m")

_RULES = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "PNDMScheduler": "pndm",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler-ancestral",
    "HeunDiscreteScheduler": "heun",
    "DPMSolverMultistepScheduler": "dpm++2m",
    "LCMScheduler": "lcm",
    "UnCLIPScheduler": "unclip",
    "ConsistencyDecoderScheduler": "consistency",
}
_NEAREST = {
    "LMSDiscreteScheduler": "euler",
    "KDPM2DiscreteScheduler": "heun",
    "KDPM2AncestralDiscreteScheduler": "euler-ancestral",
    "DPMSolverSinglestepScheduler": "dpm++2m",
    "DEISMultistepScheduler": "dpm++2m",
    "UniPCMultistepScheduler": "dpm++2m",
}
"""Rules we have not, and the one whose pictures are most like theirs."""

_COMMON: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "rescale_betas_zero_snr": False,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "ddim": {"clip_sample": True, "set_alpha_to_one": True},
    "ddpm": {"clip_sample": True},
    "pndm": {"set_alpha_to_one": False},
    "euler": {"timestep_spacing": "linspace"},
    "euler-ancestral": {"timestep_spacing": "linspace"},
    "heun": {"timestep_spacing": "linspace", "beta_start": 0.00085, "beta_end": 0.012},
    "dpm++2m": {"timestep_spacing": "linspace"},
    "lcm": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "set_alpha_to_one": True},
    "unclip": {"beta_schedule": "squaredcos_cap_v2", "variance_type": "fixed_small_log", "clip_sample": True},
    "consistency": {"num_train_timesteps": 1024, "beta_schedule": "squaredcos_cap_v2"},
}
"""What each of diffusers' classes takes for a number that its configuration leaves out, beside `_COMMON`."""

_TRAINED = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
"""Settings that say how a model was trained, rather than how it is sampled."""

_BETAS: dict[str, Any] = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "squared_cosine",
}
_PREDICTIONS: dict[str, Any] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
_UNSERVED: dict[str, tuple[Any, ...]] = {
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_flow_sigmas": (False, None),
    "euler_at_final": (False,),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "sigma_min": (None,),
    "sigma_max": (None,),
}
"""Settings with the values under which our rules equal diffusers'."""


@dataclass(frozen=True)
class Sampling:
    """A schedule, the update rule of its scheduler, and what differs from that scheduler (empty: nothing).

    Args:
        config: what it was read from.
    """

    schedule: ScheduleSpec
    rule: str
    note: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)

    def schedules(self, rules: Iterable[str]) -> dict[str, ScheduleSpec]:
        """Schedules of further rules, where they are not this one.

        Source: diffusers' ``OtherScheduler.from_config(pipeline.scheduler.config)``, which takes its own default for
        what the configuration leaves out; but the noise that the model was trained with is no scheduler's to choose.
        """
        names = {rule: name for name, rule in _RULES.items()}
        settings = {**_COMMON, **_DEFAULTS[self.rule]}
        given = {**{name: settings[name] for name in _TRAINED}, **self.config}
        found = {rule: read_schedule({**given, "_class_name": names[rule]}).schedule for rule in rules}
        return {rule: schedule for rule, schedule in found.items() if schedule != self.schedule}


def read_schedule(config: Mapping[str, Any], where: str = "scheduler") -> Sampling:
    """The schedule of a ``scheduler_config.json``.

    Args:
        config: the file's object, with diffusers' class under ``_class_name``.
        where: what messages call it.

    Raises:
        VlrtError: a scheduler or a setting that no rule here reproduces; the message names it.
    """
    name = str(config.get("_class_name", ""))
    rule = _RULES.get(name) or _NEAREST.get(name)
    if rule is None:
        what = f"the {where} is a `{name}`, which no rule here reproduces"
        raise VlrtError(what, f"put one of {', '.join(_RULES)} into scheduler_config.json")
    note = "" if name in _RULES else f"sampled by `{rule}` in the place of diffusers' {name}"
    settings = {**_COMMON, **_DEFAULTS[rule], **{key: value for key, value in config.items() if value is not None}}
    _refuse_unserved(settings, where)
    spec = _with_rule(_schedule(settings, where), rule, settings)
    solver = _solver_note(settings) if name == "DPMSolverMultistepScheduler" else ""
    return Sampling(spec, rule, note or solver, config)


def _refuse_unserved(settings: Mapping[str, Any], where: str) -> None:
    for name, served in _UNSERVED.items():
        if name in settings and settings[name] not in served:
            what = f"the {where} has `{name}` {settings[name]!r}, which no rule here reproduces"
            raise VlrtError(what, f"set it to {served[0]!r} in scheduler_config.json")


def _schedule(settings: Mapping[str, Any], where: str) -> ScheduleSpec:
    prediction = _PREDICTIONS.get(settings["prediction_type"])
    if prediction is None:
        raise VlrtError(f"the {where} predicts `{settings['prediction_type']}`, known are {', '.join(_PREDICTIONS)}")
    values = tuple(float(beta) for beta in settings.get("trained_betas") or ()) or _computed(settings, where)
    threshold = ThresholdSpec(float(settings["dynamic_thresholding_ratio"]), float(settings["sample_max_value"]))
    clipped = settings["clip_sample"] and not settings["thresholding"]
    return ScheduleSpec(
        betas="explicit" if values else _BETAS[settings["beta_schedule"]],
        train_steps=int(settings["num_train_timesteps"]),
        beta_start=float(settings["beta_start"]),
        beta_end=float(settings["beta_end"]),
        values=values,
        prediction=prediction,
        spacing=settings["timestep_spacing"],
        steps_offset=int(settings["steps_offset"]),
        clip_sample=float(settings["clip_sample_range"]) if clipped else 0.0,
        threshold=threshold if settings["thresholding"] else None,
        zero_terminal_snr=bool(settings["rescale_betas_zero_snr"]),
    )


def _with_rule(spec: ScheduleSpec, rule: str, settings: Mapping[str, Any]) -> ScheduleSpec:
    """What only some rules know."""
    if rule in ("ddim", "pndm", "lcm"):
        spec = replace(spec, set_alpha_to_one=bool(settings["set_alpha_to_one"]))
    if rule == "pndm":
        spec = replace(spec, skip_prk_steps=bool(settings.get("skip_prk_steps", False)))
    if rule in ("ddpm", "unclip"):
        spec = replace(spec, variance=settings.get("variance_type", "fixed_small"))
    if rule in ("euler", "heun", "dpm++2m"):
        spec = replace(spec, karras_sigmas=bool(settings.get("use_karras_sigmas", False)))
    if rule in ("euler", "dpm++2m"):
        spec = replace(spec, final_sigma=settings.get("final_sigmas_type", "zero"))
    if rule == "dpm++2m":
        order = min(2, int(settings.get("solver_order", 2)))
        spec = replace(spec, solver_order=order, lower_order_final=bool(settings.get("lower_order_final", True)))
        if settings.get("variance_type") in ("learned", "learned_range"):
            spec = replace(spec, variance=settings["variance_type"])
    if rule == "lcm":
        scaling = float(settings.get("timestep_scaling", 10.0))
        spec = replace(spec, original_steps=int(settings.get("original_inference_steps", 50)), timestep_scaling=scaling)
    return spec


def _solver_note(settings: Mapping[str, Any]) -> str:
    """A multistep solver has a whole family of settings, of which the second order ++ one with midpoints is ours."""
    served = {"algorithm_type": ("dpmsolver++",), "solver_type": ("midpoint",), "solver_order": (1, 2)}
    other = [f"{name} {settings[name]}" for name, ours in served.items() if settings.get(name, ours[0]) not in ours]
    return f"sampled by `dpm++2m` in the place of {', '.join(other)}" if other else ""


def _computed(settings: Mapping[str, Any], where: str) -> tuple[float, ...]:
    """Variances of the forms that only diffusers' DDPM knows, as numbers; nothing for those that have a name here."""
    form = settings["beta_schedule"]
    if form in _BETAS:
        return ()
    import diffusers

    try:
        made = diffusers.DDPMScheduler(
            num_train_timesteps=settings["num_train_timesteps"],
            beta_start=settings["beta_start"],
            beta_end=settings["beta_end"],
            beta_schedule=form,
        )
    except NotImplementedError:  # how diffusers says that it does not know the name
        raise VlrtError(
            f"the {where} has the unknown `beta_schedule` {form!r}", f"one of {', '.join(_BETAS)}"
        ) from None
    return tuple(made.betas.double().tolist())

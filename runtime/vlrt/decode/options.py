"""Every option of decoding, validated in one place."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from vlrt.errors import UsageError

_INTEGERS = (
    *("num_beams", "num_return_sequences", "max_new_tokens", "min_new_tokens", "min_length"),
    *("top_k", "no_repeat_ngram_size", "seed"),
)
_REALS = ("length_penalty", "temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "guidance_scale")
_OF_RULE = ("rule", "length_penalty", "early_stopping")
_WARPERS = ("temperature", "top_k", "top_p", "min_p", "typical_p")


@dataclass(frozen=True)
class DecodeOptions:
    """How tokens are chosen; names, meanings and defaults are those of transformers' `GenerationConfig`.

    Args:
        rule: ``hf``, transformers' beam search; ``classic``, that of Show and Tell: sums of log-probabilities
            (divided by length ** `length_penalty` where that is not 0) and an exact stop.
        num_beams: live hypotheses per image; 1 is greedy (or plain sampling).
        num_return_sequences: hypotheses to return per image: the n best of a beam search, or n samples.
        max_new_tokens, min_new_tokens: bounds on generated tokens, the end id included.
        min_length: as `min_new_tokens`, but the prompt counts; ignored where `min_new_tokens` is given.
        length_penalty: exponent of the length that sums of log-probabilities are divided by.
        early_stopping: `True` stops at `num_beams` finished hypotheses, `False` where a heuristic sees no
            improvement, ``never`` where none is possible; rule ``hf`` only.
        do_sample: draw tokens at random; the rest of this line's options apply then:
            temperature, top_k (0: off), top_p, min_p (0: off), typical_p.
        repetition_penalty, no_repeat_ngram_size, bad_words_ids, suppress_tokens, begin_suppress_tokens,
            forced_bos_token_id, forced_eos_token_id, renormalize_logits: as in transformers, prompt included.
        guidance_scale: of classifier-free guidance on logits, ``u + s · (c − u)`` of rows with and without the prompt;
            1 or less: no guidance, and no unconditional rows.
        seed: of every random number; equal seeds draw transformers' tokens after `torch.manual_seed(seed)`.

    Raises:
        UsageError: an option is out of range or does not go with another.
    """

    rule: Literal["hf", "classic"] = "hf"
    num_beams: int = 1
    num_return_sequences: int = 1
    max_new_tokens: int = 32
    min_new_tokens: int = 0
    min_length: int = 0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | tuple[int, ...] | None = None
    renormalize_logits: bool = False
    guidance_scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_types()
        self._check_counts()
        self._check_reals()
        self._check_ids()
        self._check_pairs()

    @classmethod
    def from_manifest(cls, defaults: Mapping[str, Any], **overrides: Any) -> DecodeOptions:
        """A bundle's defaults, replaced by `overrides`; an override of `None` keeps the default.

        Another `rule` than the bundle's brings its own `length_penalty` and `early_stopping`: ``classic`` 0.

        Raises:
            UsageError: an unknown option, or one that the class refuses.
        """
        names = [field.name for field in fields(cls)]
        given = {name: value for name, value in overrides.items() if value is not None}
        for name in (*defaults, *given):
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                hint = f"did you mean `{near[0]}`?" if near else ""
                raise UsageError(f"unknown decoding option `{name}`", hint)
        if "rule" in given and given["rule"] != defaults.get("rule", cls.rule):
            # A length penalty is tuned for one rule; the other starts from its own: plain sums, or transformers'.
            defaults = {name: value for name, value in defaults.items() if name not in _OF_RULE}
            given = ({"length_penalty": 0.0} if given["rule"] == "classic" else {}) | given
        merged = {**defaults, **given}
        if not merged.get("do_sample", False):
            # Where a bundle samples by default and a user switches that off, its warpers go with it.
            merged = {n: v for n, v in merged.items() if n in given or n not in _WARPERS}
        return cls(**merged)

    @property
    def forced_eos_ids(self) -> tuple[int, ...]:
        value = self.forced_eos_token_id
        return () if value is None else (value,) if isinstance(value, int) else value

    @property
    def lanes(self) -> int:
        """Prompts per image: its own, and with guidance the unconditional one."""
        return 2 if self.guidance_scale > 1 else 1

    @property
    def rows_per_image(self) -> int:
        return self.lanes * max(self.num_beams, self.num_return_sequences)

    def check_vocabulary(self, vocabulary: int) -> None:
        """Raises `UsageError` where an option names an id outside ``[0, vocabulary)``."""
        words = [("bad_words_ids", word) for word in self.bad_words_ids]
        forced = () if self.forced_bos_token_id is None else (self.forced_bos_token_id,)
        for name, ids in (
            *words,
            ("suppress_tokens", self.suppress_tokens),
            ("begin_suppress_tokens", self.begin_suppress_tokens),
            ("forced_bos_token_id", forced),
            ("forced_eos_token_id", self.forced_eos_ids),
        ):
            for token in ids:
                if not 0 <= token < vocabulary:
                    raise UsageError(f"`{name}` has the id {token}, expected 0 to {vocabulary - 1}")

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_types(self) -> None:
        for name in _INTEGERS:
            self._set(name, _integer(name, getattr(self, name)))
        for name in _REALS:
            self._set(name, _real(name, getattr(self, name)))
        for name in ("do_sample", "renormalize_logits"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"`{name}` is {getattr(self, name)!r}, expected true or false")
        if self.rule not in ("hf", "classic"):
            raise UsageError(f"`rule` is {self.rule!r}, expected `hf` or `classic`")
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise UsageError(f"`early_stopping` is {self.early_stopping!r}, expected true, false or `never`")

    def _check_counts(self) -> None:
        for name in ("num_beams", "num_return_sequences", "max_new_tokens"):
            if not 1 <= getattr(self, name) <= 1 << 16:
                raise UsageError(f"`{name}` is {getattr(self, name)}, expected 1 to 65536")
        for name in ("min_new_tokens", "min_length", "top_k", "no_repeat_ngram_size"):
            if not 0 <= getattr(self, name) <= 1 << 31:
                raise UsageError(f"`{name}` is {getattr(self, name)}, expected 0 or more")
        if not 0 <= self.seed < 1 << 64:
            raise UsageError(f"`seed` is {self.seed}, expected 0 to 2**64 - 1")
        if self.min_new_tokens > self.max_new_tokens:
            raise UsageError(f"`min_new_tokens` is {self.min_new_tokens}, more than `max_new_tokens` allows")

    def _check_reals(self) -> None:
        if self.temperature <= 0:
            what = f"`temperature` is {self.temperature}, expected more than 0"
            raise UsageError(what, "use `do_sample=False`")
        if self.repetition_penalty <= 0:
            raise UsageError(f"`repetition_penalty` is {self.repetition_penalty}, expected more than 0")
        for name, lowest in (("top_p", "0"), ("min_p", "0"), ("typical_p", "more than 0")):
            value = getattr(self, name)
            if not 0 <= value <= 1 or (name == "typical_p" and value == 0):
                raise UsageError(f"`{name}` is {value}, expected {lowest} to 1")

    def _check_ids(self) -> None:
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            self._set(name, _ids(name, getattr(self, name)))
        if isinstance(self.bad_words_ids, str) or not isinstance(self.bad_words_ids, Iterable):
            raise UsageError(f"`bad_words_ids` is {self.bad_words_ids!r}, expected lists of ids")
        self._set("bad_words_ids", tuple(_ids("bad_words_ids", word) for word in self.bad_words_ids))
        if not all(self.bad_words_ids):
            raise UsageError("`bad_words_ids` has an empty list, expected at least one id in each")
        if self.forced_bos_token_id is not None:
            self._set("forced_bos_token_id", _integer("forced_bos_token_id", self.forced_bos_token_id))
        if isinstance(self.forced_eos_token_id, Iterable):
            self._set("forced_eos_token_id", _ids("forced_eos_token_id", self.forced_eos_token_id))
        elif self.forced_eos_token_id is not None:
            self._set("forced_eos_token_id", _integer("forced_eos_token_id", self.forced_eos_token_id))

    def _check_pairs(self) -> None:
        beams, returned = self.num_beams, self.num_return_sequences
        if (beams > 1 or self.rule == "classic") and returned > beams:
            raise UsageError(f"`num_return_sequences` is {returned}, expected at most `num_beams`, {beams}")
        if beams == 1 and returned > 1 and not self.do_sample:
            hint = f"use `num_beams={returned}` or `do_sample=True`"
            raise UsageError(f"`num_return_sequences` is {returned}, greedy decoding has one result", hint)
        if self.rule == "classic" and self.do_sample:
            raise UsageError("`rule` is `classic`, which does not sample", "use `rule='hf'` with `do_sample`")
        if not self.do_sample:
            defaults = {field.name: field.default for field in fields(self)}
            for name in _WARPERS:
                if getattr(self, name) != defaults[name]:
                    raise UsageError(f"`{name}` is set, but tokens are not sampled", "add `do_sample=True`")


def _integer(name: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise UsageError(f"`{name}` is {value!r}, expected a whole number")
    return int(value)


def _real(name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"`{name}` is {value!r}, expected a number")
    return number


def _ids(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise UsageError(f"`{name}` is {value!r}, expected a list of ids")
    ids = tuple(_integer(name, item) for item in value)
    if any(token < 0 for token in ids):
        raise UsageError(f"`{name}` has the id {min(ids)}, expected 0 or more")
    return ids

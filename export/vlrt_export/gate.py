"""The quality gate: a reduced graph is written only if the task survives, it pays, and its kernels really run."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnxruntime

from vlrt.bundle import Bundle
from vlrt.errors import UsageError, VlrtError
from vlrt.manifest import Manifest, Measurement
from vlrt_export.calibration import Calibration
from vlrt_export.gate_metrics import Metric, metrics_of
from vlrt_export.gate_parts import sensitive_parts
from vlrt_export.gate_speed import Speed, executed_kernels, measure_speed, times_run
from vlrt_export.reduced_graph import INT4, KINDS, Candidate, Workshop
from vlrt_export.trial import Record, TrialSessions

PRECISIONS = ("fp32", *KINDS)
SHARES = (0.05, 0.1, 0.2, 0.4)
"""Shares of the parts, the most sensitive first, that are left in fp32 in turn until the task's metric holds."""

_QUICK = ("embed", "match")
"""Metrics that take one pass, and no search, of each photograph."""

_SCRATCH = ".trial"

Progress = Callable[[str], None]


class GateError(VlrtError):
    """A reduced precision that was not admitted; nothing was written."""


@dataclass(frozen=True)
class Wish:
    """What reduced precision was asked for.

    Args:
        precision: one of `PRECISIONS`.
        calibration: the photographs it is found on and judged by.
        limits: of the gate, by name; see models.yaml.
        smaller: factor by which all graphs together must shrink, in place of being faster; 0 asks for speed.
    """

    precision: str
    calibration: Calibration
    limits: Mapping[str, float]
    smaller: float = 0.0

    def __post_init__(self) -> None:
        if self.precision not in KINDS:
            raise UsageError(f"there is no reduced precision `{self.precision}`", f"one of {', '.join(KINDS)}")
        if self.smaller and not 1 < self.smaller <= 16:
            raise UsageError(f"`--smaller` is {self.smaller:g}, expected a factor above 1 and at most 16")


@dataclass(frozen=True)
class Admitted:
    """A candidate that pays: its speed beside fp32's."""

    candidate: Candidate
    speed: Speed


class Gate:
    """Judges one staged bundle.

    Args:
        folder: the staged fp32 bundle.
        described: its manifest.
        wish: what was asked for.
        progress: told each stage.
    """

    def __init__(self, folder: Path, described: Manifest, wish: Wish, progress: Progress) -> None:
        self.bundle, self.wish, self.progress = Bundle.open(folder), wish, progress
        self.scratch = folder / _SCRATCH
        self.metrics: dict[str, Metric] = metrics_of(described)
        if not self.metrics:
            what = f"nothing can judge `{described.name}` in reduced precision: it serves {', '.join(described.tasks)}"
            raise GateError(what, "export it in fp32")

    def admit(self) -> tuple[list[Candidate], list[Measurement]]:
        """The graphs to write in place of fp32's, and the certificate's lines.

        Raises:
            GateError: no graph pays, its kernels did not run, or the task suffers; says by how much.
        """
        self.progress("running the bundle in fp32")
        expected, records = self._observe_fp32()
        self.scratch.mkdir()
        shops = {role: self._workshop(role, record) for role, record in records.items()}
        tried = self._try(shops, records)
        chosen, quality = self._choose(shops, tried), list[Measurement]()
        if INT4 in {one.candidate.kind for one in chosen.values()} and self.wish.precision != INT4:
            quality = self._quality(chosen, expected)
            if not all(line.passed for line in quality):
                # Four bits are a bet that is lost as a whole; what eight bits lose is worth a search.
                eight = {role: [one for one in found if one.candidate.kind != INT4] for role, found in tried.items()}
                chosen, quality = self._choose(shops, eight), []
        chosen, quality = self._hold_quality(shops, records, chosen, expected, quality)
        lines = [*quality, *self._kernels(chosen, records), *self._gains(chosen, shops)]
        failed = [line for line in lines if not line.passed]
        if failed:
            raise _refusal(self.wish.precision, failed)
        return [one.candidate for one in chosen.values()], lines

    def _observe_fp32(self) -> tuple[dict[str, Any], dict[str, Record]]:
        """What fp32 does on the held-out half, and what its graphs are called with on the other one."""
        sessions = TrialSessions(self.bundle, recorded=True)
        self._observe(sessions, {}, self.wish.calibration.for_ranges())
        with sessions.unrecorded():
            return self._observe(sessions, {}, self.wish.calibration), sessions.records

    def _observe(self, sessions: TrialSessions, expected: Mapping[str, Any], data: Calibration) -> dict[str, Any]:
        return {
            name: metric.observe(self.bundle, sessions, data, expected.get(name))
            for name, metric in self.metrics.items()
        }

    def _workshop(self, role: str, record: Record) -> Workshop:
        calls = [call.inputs for call in record.calls if not call.shared]
        return Workshop(role, self.bundle.graph(role), self.scratch / role, calls)

    def _try(self, shops: Mapping[str, Workshop], records: Mapping[str, Record]) -> dict[str, list[Admitted]]:
        """Every graph in each kind that was asked for."""
        kinds = KINDS[self.wish.precision]
        tried = {role: self._measured(shop, kinds, records[role]) for role, shop in shops.items()}
        if not any(tried.values()):
            what = f"`{self.bundle.name}` has nothing that `{self.wish.precision}` could reduce"
            raise GateError(what, "choose another --precision")
        return tried

    def _choose(self, shops: Mapping[str, Workshop], tried: Mapping[str, Sequence[Admitted]]) -> dict[str, Admitted]:
        """Of each graph the candidate that pays most, if one does."""
        chosen = {}
        for role, found in tried.items():
            paying = [one for one in found if self._pays(one, shops[role])]
            if paying:
                chosen[role] = max(paying, key=lambda one: one.speed.ratio)
                self._tell(chosen[role])
        if not chosen:
            raise self._nothing_pays([one for found in tried.values() for one in found])
        return chosen

    def _measured(self, shop: Workshop, kinds: Sequence[str], record: Record) -> list[Admitted]:
        """The graph in each kind that has something to reduce in it, and how fast each is."""
        self.progress(f"reducing {shop.role} to {', '.join(kinds)}")
        found = [made for made in (shop.make(kind) for kind in kinds) if made is not None]
        gc.collect()  # loops and their models refer to each other, and with them sessions as large as the model
        if not found:
            return []
        speeds = measure_speed((shop.spec, shop.path), [_written(made) for made in found], record.by_shape())
        return [Admitted(made, speed) for made, speed in zip(found, speeds)]

    def _pays(self, found: Admitted, shop: Workshop) -> bool:
        if self.wish.smaller:
            return found.candidate.size < shop.size
        return found.speed.ratio >= self.wish.limits["speed"]

    def _tell(self, found: Admitted) -> None:
        speed, candidate = found.speed, found.candidate
        self.progress(f"{candidate.role} in {candidate.kind}: {speed.fp32:.3g} ms become {speed.reduced:.3g}")

    def _nothing_pays(self, tried: Sequence[Admitted]) -> GateError:
        best = max(tried, key=lambda one: one.speed.ratio)
        limit = self.wish.limits["speed"]
        what = f"`{self.wish.precision}` is not faster here: at best {best.speed.ratio:.2f} times fp32's speed"
        return GateError(
            f"{what} (`{best.candidate.role}`), expected at least {limit:g}; the bundle was not written",
            "--smaller FACTOR admits what is only smaller; another --precision may be faster",
        )

    def _hold_quality(
        self,
        shops: Mapping[str, Workshop],
        records: Mapping[str, Record],
        chosen: dict[str, Admitted],
        expected: Mapping[str, Any],
        known: list[Measurement],
    ) -> tuple[dict[str, Admitted], list[Measurement]]:
        """Leaves the most sensitive parts in fp32, more of them in turn, until the task is done as well as in fp32."""
        first = lines = known or self._quality(chosen, expected)
        ranked: list[tuple[str, str]] = []
        for share in SHARES:
            if all(line.passed for line in lines):
                break
            if not ranked:
                self.progress("finding the parts that reduced precision hurts most")
                reduced = {role: (shops[role], one.candidate.kind) for role, one in chosen.items()}
                ranked = sensitive_parts(reduced, records, self.wish.smaller > 0, self.progress)
            left_out = ranked[: max(1, round(share * len(ranked)))]
            self.progress(f"leaving {len(left_out)} of {len(ranked)} parts in fp32")
            chosen = self._without(shops, chosen, left_out)
            lines = self._quality(chosen, expected, whole=False)
        if not all(line.passed for line in lines):
            raise _refusal(self.wish.precision, [line for line in first if not line.passed])
        paying = self._still_paying(shops, records, chosen)
        return paying, lines if len(paying) == len(chosen) else self._quality(paying, expected)

    def _without(
        self, shops: Mapping[str, Workshop], chosen: Mapping[str, Admitted], left_out: Sequence[tuple[str, str]]
    ) -> dict[str, Admitted]:
        """The same graphs with some parts in fp32; their speed is still that of the whole ones."""
        found = dict(chosen)
        for role, one in chosen.items():
            kept = frozenset(name for where, name in left_out if where == role)
            if kept != one.candidate.kept:
                made = shops[role].make(one.candidate.kind, kept)
                del found[role]
                found |= {} if made is None else {role: replace(one, candidate=made)}
        return found

    def _still_paying(
        self, shops: Mapping[str, Workshop], records: Mapping[str, Record], chosen: Mapping[str, Admitted]
    ) -> dict[str, Admitted]:
        """Measures again what has parts in fp32, and leaves out what pays no more."""
        found = dict(chosen)
        for role, one in chosen.items():
            if one.candidate.kept:
                speeds = measure_speed(
                    (shops[role].spec, shops[role].path), [_written(one.candidate)], records[role].by_shape()
                )
                found[role] = replace(one, speed=speeds[0])
                self._tell(found[role])
        found = {role: one for role, one in found.items() if self._pays(one, shops[role])}
        if not found:
            what = (
                f"`{self.wish.precision}` pays only where it hurts: without its most sensitive parts nothing is gained"
            )
            raise GateError(f"{what}; the bundle was not written", "choose another --precision")
        return found

    def _quality(
        self, chosen: Mapping[str, Admitted], expected: Mapping[str, Any], whole: bool = True
    ) -> list[Measurement]:
        """Every metric's lines; unless `whole`, only up to the first metric that fails, the quickest being first."""
        self.progress("comparing with fp32")
        sessions = TrialSessions(self.bundle, {role: _written(one.candidate) for role, one in chosen.items()})
        data, limits = self.wish.calibration, self.wish.limits
        lines: list[Measurement] = []
        for name in sorted(self.metrics, key=lambda name: name not in _QUICK):
            metric = self.metrics[name]
            found = metric.observe(self.bundle, sessions, data, expected[name])
            lines += metric.compare(expected[name], found, data, limits)
            if not whole and not all(line.passed for line in lines):
                break
        for line in lines:
            if not line.passed:
                self.progress(f"{line.stage[6:]}: {line.metric} is {line.value:.4g}, the limit {line.limit:.4g}")
        return lines

    def _kernels(self, chosen: Mapping[str, Admitted], records: Mapping[str, Record]) -> Iterator[Measurement]:
        for role, one in chosen.items():
            if not one.candidate.kernels:
                continue
            ran = executed_kernels(_written(one.candidate), records[role].calls[0])
            wanted = sum(one.candidate.kernels.values())
            found = sum(min(times_run(ran, name), count) for name, count in one.candidate.kernels.items())
            note = ", ".join(f"{count} {name}" for name, count in ran.most_common(6))
            ending = (float(found), float(wanted), *_engine(), f"one call ran {note}")
            yield Measurement(f"gate, {role}", "reduced kernels in the profile", *ending, better="higher")

    def _gains(self, chosen: Mapping[str, Admitted], shops: Mapping[str, Workshop]) -> Iterator[Measurement]:
        for role, one in chosen.items():
            speed = one.speed
            note = f"{speed.fp32:.4g} against {speed.reduced:.4g} ms, medians of {speed.runs} alternating runs"
            note += f", quartiles {speed.spread:.0%} apart; {len(one.candidate.kept)} parts left in fp32"
            limit = 0.0 if self.wish.smaller else self.wish.limits["speed"]
            yield Measurement(f"gate, {role}", "times as fast as fp32", speed.ratio, limit, *_engine(), note, "higher")
        if self.wish.smaller:
            before = sum(shop.size for shop in shops.values())
            saved = sum(shops[role].size - one.candidate.size for role, one in chosen.items())
            note = f"{before / 1e6:.1f} MB of graphs become {(before - saved) / 1e6:.1f}"
            ratio = before / (before - saved)
            yield Measurement(
                "gate, size", "times smaller than fp32", ratio, self.wish.smaller, *_engine(), note, "higher"
            )


def install(candidates: Sequence[Candidate], folder: Path, described: Manifest) -> Manifest:
    """Puts admitted graphs in the place of fp32's; the manifest's file records are the caller's to renew."""
    graphs = dict(described.graphs)
    for one in candidates:
        for name in graphs[one.role].external:
            (folder / name).unlink()
        for path in one.files:
            shutil.move(path, folder / path.name)
        graphs[one.role] = one.spec
    shutil.rmtree(folder / _SCRATCH)
    return replace(described, graphs=graphs)


def _written(candidate: Candidate) -> tuple[Any, Path]:
    return candidate.spec, candidate.path


def _engine() -> tuple[str, str]:
    return "onnxruntime on this machine", str(onnxruntime.__version__)


def _refusal(precision: str, failed: Sequence[Measurement]) -> GateError:
    shown = "; ".join(
        f"{line.stage[6:]}: {line.metric} is {line.value:.4g}, the limit {line.limit:.4g}" for line in failed
    )
    return GateError(
        f"`{precision}` is not admitted: {shown}; the bundle was not written",
        "choose another --precision, or calibrate on more photographs like those the model will see",
    )

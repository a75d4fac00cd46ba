"""What the user asked to export, as the families see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from vlrt.errors import UsageError, VlrtError
from vlrt.zoo import Entry
from vlrt_export.graph import Plan


@dataclass(frozen=True)
class Request:
    """One export.

    Args:
        name: the bundle's name; that of the zoo's entry unless the user gave another.
        entry: the zoo's entry: family, tolerances, options.
        source: checkpoint as the user named it (hub id, folder, file), or `None` with `random`.
        random: make the architecture with random weights of `seed`.
        options: the entry's options, overlaid with those of the command line (`encoder`, `attention`, `tokenizer`, …).
    """

    name: str
    entry: Entry
    source: str | None = None
    random: bool = False
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.random and self.source:
            raise UsageError("`--random` and `--source` exclude each other")
        if not self.random and not self.source:
            raise UsageError(f"`{self.name}` needs a checkpoint", "give `--source CHECKPOINT`, or `--random`")

    def checkpoint(self) -> str:
        """The source, for families that need one.

        Raises:
            UsageError: random weights were asked for.
        """
        if self.source is None:
            raise UsageError(f"`{self.name}` has no random weights", "give `--source CHECKPOINT`")
        return self.source

    def option(self, name: str, default: Any = None) -> Any:
        """An option's value, or the default where neither entry nor user gave one."""
        value = self.options.get(name)
        return default if value is None else value

    def tolerance(self, rung: str, default: float) -> float:
        """The limit of a rung of the parity ladder, as the zoo states it."""
        return self.entry.tolerances.get(rung, default)


def build(request: Request) -> Plan:
    """Finds the family by its name and lets it build the plan.

    Raises:
        VlrtError: no such family, or whatever the family finds wrong with the checkpoint.
    """
    module = f"vlrt_export.families.{request.entry.family.replace('-', '_')}"
    try:
        family = import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise VlrtError(f"there is no family `{request.entry.family}`", "correct models.yaml") from None
    build_plan: Callable[[Request], Plan] = family.build
    return build_plan(request)

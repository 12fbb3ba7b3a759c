"""What a check before a merge can find, and the report that holds it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from mergescope.display import NONE, Cell, Table, View, as_html, as_pandas, as_pretty, as_text, figure
from mergescope.plain import plain
from mergescope.weights.geometry import Geometry
from mergescope.weights.relation import Relation

Severity = Literal["error", "warning", "note"]

QUALITY = (
    "Weight geometry tells whether models share an origin, not how good their merge is: measure that on data."
)
"""Goes with every verdict."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found, told once however many tensors it concerns.

    Attributes:
        severity: ``"error"`` (can't be merged), ``"warning"`` (can, but look first) or ``"note"``.
        topic: ``models``, ``recipe``, ``keys``, ``shapes``, ``dtypes``, ``values``, ``tied``, ``config``,
            ``tokenizer`` or ``relation``.
        message: a sentence; with many tensors it names a pattern and a count.
        items: everything concerned, in full.
    """

    severity: Severity
    topic: str
    message: str
    items: tuple[str, ...] = ()


@dataclass(frozen=True)
class ConfigRow:
    """A key of ``config.json`` in which the models differ.

    Attributes:
        key: with dots for nested parts.
        values: one a model, in the report's order; ``"-"`` where it is not stated.
        matters: ``"yes"``, ``"no"``, or ``"unknown"`` for a key that is in no table here.
    """

    key: str
    values: tuple[str, ...]
    matters: str


@dataclass(frozen=True)
class Verdict:
    """How two models are related.

    Attributes:
        model: a model's name.
        other: the base's, or another model's.
        relation: the measured relation.
        reason: it in words.
        cosine: between the two task vectors; None for the base, without one, or where a model equals it.
        sign_conflict: between the two task vectors; None where there is no cosine.
    """

    model: str
    other: str
    relation: Relation
    reason: str
    cosine: float | None = None
    sign_conflict: float | None = None


@dataclass
class Report:
    """What [`check`][mergescope.merging.check.check] found.

    Attributes:
        models: names, the base first if there is one.
        base: the base's name, or None.
        findings: problems and notes, errors first.
        config: keys of the configurations that differ.
        verdicts: one a pair.
        geometry: sums of the tensors that all have in one shape, or None if nothing was measured.
        skipped: what was not checked, and why.
    """

    models: tuple[str, ...]
    base: str | None = None
    findings: list[Finding] = field(default_factory=list)
    config: list[ConfigRow] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    geometry: Geometry | None = None
    skipped: list[str] = field(default_factory=list)

    def of(self, severity: Severity) -> list[Finding]:
        """Findings of one severity.

        Args:
            severity: which.

        Returns:
            The findings.
        """
        return [finding for finding in self.findings if finding.severity == severity]

    @property
    def mergeable(self) -> bool:
        """Whether nothing stands against a merge."""
        return not self.of("error")

    def exit_code(self, strict: bool = False) -> int:
        """For scripts: 0 can be merged, 2 can't; 3 can, but there are warnings and they count.

        Args:
            strict: whether warnings count.

        Returns:
            The code.

        Example:
            >>> report = Report(("a", "b"), findings=[Finding("warning", "dtypes", "They differ.")])
            >>> report.exit_code(), report.exit_code(strict=True)
            (0, 3)
        """
        if not self.mergeable:
            return 2
        return 3 if strict and self.of("warning") else 0

    @property
    def says(self) -> str:
        """The conclusion in words."""
        errors, warnings = len(self.of("error")), len(self.of("warning"))
        counted = f"{warnings} warning{'' if warnings == 1 else 's'}"
        if errors:
            return f"Can't be merged: {errors} error{'' if errors == 1 else 's'}, {counted}."
        return f"Can be merged: no errors, {counted}."

    def rows(self) -> list[dict[str, Any]]:
        """Findings, and how the models are related, as lines of a table.

        Returns:
            ``kind`` (severity, or ``pair``), ``topic`` (of a pair: its relation), ``points``, ``says``; of pairs
            also the cosine and sign conflict of their task vectors.
        """
        nan = float("nan")
        found: list[dict[str, Any]] = [
            {"kind": it.severity, "topic": it.topic, "points": "", "says": it.message} for it in self.findings
        ]
        return found + [
            {
                "kind": "pair", "topic": it.relation.word, "points": f"{it.model} + {it.other}", "says": it.reason,
                "cos": nan if it.cosine is None else it.cosine,
                "sign_conflict": nan if it.sign_conflict is None else it.sign_conflict,
            }
            for it in self.verdicts
        ]  # fmt: skip

    __str__, to_pandas, _repr_html_, _repr_pretty_ = as_text, as_pandas, as_html, as_pretty

    def _view(self) -> View:
        found = tuple((it.severity, it.topic, it.message) for it in self.findings)
        pairs = tuple(
            (
                f"{it.model} / {it.other}",
                it.relation.word,
                Cell(NONE) if it.cosine is None else figure(it.cosine),
                it.reason,
            )
            for it in self.verdicts
        )
        tables = [Table("Findings", ("severity", "topic", "what"), found)] if found else []
        heads = ("pair", "relation", "cosine", "reason")
        tables += [Table("Where the models come from", heads, pairs)] if pairs else []
        return View(self.says, tuple(tables), tuple(f"not checked: {it}" for it in self.skipped))

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON: no NaN and no infinite numbers, which JSON lacks (null instead).

        Returns:
            Plain lists, dictionaries and scalars.
        """
        whole = {
            "models": self.models,
            "base": self.base,
            "mergeable": self.mergeable,
            "findings": [vars(finding) for finding in self.findings],
            "config": [vars(row) for row in self.config],
            "verdicts": [vars(v) | {"relation": vars(v.relation)} for v in self.verdicts],
            "geometry": []
            if self.geometry is None or self.base is None
            else [vars(row) for row in self.geometry.rows(("model", "layer", "kind"))],
            "skipped": self.skipped,
            "about": QUALITY,
        }
        return plain(whole)

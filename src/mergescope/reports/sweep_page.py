"""The pages of studies that train networks of their own and end in claims: root causes, and Theorem 5.1."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergescope.errors import StudyError
from mergescope.reports.html import Parts
from mergescope.reports.protocol_view import AGAIN, Drawing
from mergescope.reports.sweep_figures import along_sweeps
from mergescope.reports.tables import Cell, Grid, number, significant
from mergescope.reports.theorem_figures import gaps_against
from mergescope.studies.claims import FAILS, HOLDS, KIND, OPEN, Claim, claim_of
from mergescope.studies.rundir import RESULTS, Row, read_rows
from mergescope.studies.sweeps.root_causes import SWEEPS
from mergescope.studies.sweeps.trends import BASELINE, DEVIATION, series

WHERE = {"midpoint": "merged point", "base": "pretrained checkpoint"}
"""Places of λ, in words."""


@dataclass(frozen=True)
class Page:
    """What a study shows.

    Attributes:
        title: a question.
        lead: what it is about.
        rule: how claims are judged.
        facts: terms and lines of text.
        drawings: file name without suffix to figure.
        grids: tables.
    """

    title: str
    lead: str
    rule: str
    facts: Sequence[tuple[str, Sequence[str]]]
    drawings: Mapping[str, Drawing]
    grids: Sequence[Grid]


@dataclass(frozen=True)
class Judged:
    """A study that ends in claims, as pages show it.

    Attributes:
        page: words, figures and tables.
        claims: what is varied, or where, to its claims.
    """

    page: Page
    claims: Mapping[str, Sequence[Claim]]

    @property
    def verdicts(self) -> list[str]:
        """Of all claims."""
        return [claim.verdict for group in self.claims.values() for claim in group]


def judged(path: Path, about: Mapping[str, Any]) -> Judged:
    """Read the run directory of such a study.

    Args:
        path: the directory.
        about: content of its ``run.yaml``.

    Returns:
        Its page and claims.

    Raises:
        StudyError: something is missing or damaged.
    """
    rows = read_rows(path / RESULTS)
    claims: dict[str, list[Claim]] = {}
    for row in sorted(rows, key=lambda row: SWEEPS.index(row.regime) if row.regime in SWEEPS else 0):
        if row.kind == KIND:
            claims.setdefault(row.regime, []).append(claim_of(row))
    if not claims:
        raise StudyError(f"{path / RESULTS} is not complete: it has no claims. {AGAIN}")
    try:
        if about["study"] in PAGES:
            return Judged(PAGES[about["study"]](rows, about["provenance"]), claims)
        from mergescope.reports.papers_page import paper_page

        words = dict(
            zip(
                (claim.says for group in claims.values() for claim in group),
                about["provenance"]["here"],
                strict=True,
            )
        )
        found = {
            group: [replace(claim, here=words[claim.says]) for claim in several]
            for group, several in claims.items()
        }
        return Judged(paper_page(about), found)
    except (KeyError, StopIteration) as error:
        raise StudyError(f"{path} is not complete, or another version wrote it ({error}). {AGAIN}") from error


def sweep_page(path: Path, about: Mapping[str, Any]) -> Parts:
    """Read the run directory of such a study and draw.

    Args:
        path: the directory.
        about: content of its ``run.yaml``.

    Returns:
        Page, figures and content.

    Raises:
        StudyError: something is missing or damaged.
    """  # noqa: DOC502 (raised by what this calls)
    found = judged(path, about)
    page = found.page
    content = {
        "title": page.title, "lead": page.lead, "rule": page.rule, "facts": page.facts,
        "all_hold": set(found.verdicts) == {HOLDS}, "headline": headline(found.verdicts),
        "groups": list(found.claims.items()), "drawings": page.drawings, "grids": page.grids,
        "significant": significant,
    }  # fmt: skip
    return Parts(
        "sweep.html.j2",
        {name: drawing.figure for name, drawing in page.drawings.items()},
        content,
        {name: drawing.table for name, drawing in page.drawings.items() if drawing.table},
    )


def headline(verdicts: Sequence[str]) -> str:
    """How many claims hold.

    Args:
        verdicts: of all claims.

    Returns:
        A sentence.

    Example:
        >>> headline(["holds", "holds", "inconclusive"])
        'Of 3 claims 2 hold, none does not, and 1 is inconclusive.'
    """
    counts = [verdicts.count(verdict) for verdict in (HOLDS, FAILS, OPEN)]
    held, failed, unsure = (str(count) if count else "none" for count in counts)
    verbs = ["hold" if counts[0] > 1 else "holds", "do not" if counts[1] > 1 else "does not",
             "are" if counts[2] > 1 else "is"]  # fmt: skip
    return f"Of {len(verdicts)} claims {held} {verbs[0]}, {failed} {verbs[1]}, and {unsure} {verbs[2]} inconclusive."


def _root_causes(rows: Sequence[Row], provenance: Mapping[str, Any]) -> Page:
    layers = provenance["shown layers"]
    found = [row for row in rows if row.kind != KIND]
    pairs = sorted({row.points.rpartition(", seed ")[0] for row in found})
    seeds = len({row.points.rpartition(", seed ")[2] for row in found})
    drawings = {
        "features": Drawing(
            along_sweeps(found, layers, (BASELINE, DEVIATION)),
            "1 - cos and its baseline along each sweep",
            "As CTL’s Figs 11 and 12: how far the merged model’s features are from the mean of the models’ features "
            "(1 − cos), and how far the models’ features are from each other (1 − cos_ij). Lines: means over "
            "repetitions; areas: from the smallest to the largest. Dotted: CTL’s own figures, of Split CIFAR-100 and "
            "Split ImageNet.",
        ),
        "coef": Drawing(
            along_sweeps(found, layers, ("coef",)),
            "coef along each sweep",
            "The length of the merged model’s features in units of the mean of the models’ features; CTL asks for 1.",
        ),
        "accuracy": Drawing(
            along_sweeps(found, [""], ("accuracy of the fine-tuned models", "accuracy of the average")),
            "accuracy along each sweep",
            "Accuracy of the averaged model on both tasks, beside that of the two models on their own tasks.",
        ),
    }
    return Page(
        "What makes features linear between fine-tuned models?",
        f"{found[0].network}, pretrained on the classes {provenance['parts'][0]}, fine-tuned on {' and '.join(pairs)}; "
        f"{seeds} repetitions from other initial weights.",
        "What should be above 0 is computed in every repetition; the interval is Student’s t over repetitions. A claim "
        "holds if the interval is above 0, does not hold if it is below, and is inconclusive otherwise.",
        [
            ("Data", [str(provenance["data"]["source"])]),
            ("Layers", [f"{' and '.join(layers)}: the first blocks of the last two stages, CTL’s blocks 3-1 and 4-1"]),
        ],
        drawings,
        [_sweep_grid(found, sweep, layer) for sweep in SWEEPS for layer in layers],
    )  # fmt: skip


def _sweep_grid(rows: Sequence[Row], sweep: str, layer: str) -> Grid:
    measures = (DEVIATION, BASELINE, "coef")
    found = {measure: series(rows, sweep, layer, measure) for measure in measures}
    body = []
    for value in found["coef"][0]:
        cells = []
        for measure in measures:
            each = [values[value] for values in found[measure]]
            known = all(math.isfinite(one) for one in each)
            ends = f"{significant(min(each))} to {significant(max(each))}" if known else ""
            cells.append(Cell(significant(sum(each) / len(each)), ends))
        body.append((f"{value:g}", tuple(cells)))
    return Grid(f"{layer}: {sweep}", (sweep, *measures), tuple(body))


def _theorem(rows: Sequence[Row], provenance: Mapping[str, Any]) -> Page:
    places = list(provenance["conventions"])
    pairs = {row.points for row in rows if row.kind == "theorem 5.1" and row.measure == "gap"}
    bases = {name.partition(":")[0] for name in pairs}
    drawings = {
        f"gaps-{place}": Drawing(
            gaps_against([row for row in rows if row.regime == place]),
            f"gap of the loss against curvature and distance, lambda at {place}",
            f"λ and the exact term at each pair’s {WHERE[place]}. "
            "One mark a pair, one shape a pretrained checkpoint. Dashed: the least-squares line; solid, in the last "
            f"panel: the exact term itself. The bound is {_times(rows, place)} times the gap.",
        )
        for place in places
    }  # fmt: skip
    notes = dict.fromkeys(note for said in provenance["notes"].values() for note in said)
    return Page(
        "Is the gap of the loss explained by curvature times squared distance?",
        f"{rows[0].network}: {len(pairs)} pairs of {len(bases)} pretrained checkpoints, fine-tuned on the same data "
        "with different settings.",
        "The bound’s interval is of the worst pair, and as wide as λ is known to its residual. The others are of a "
        "bootstrap over pairs; pairs share models, so they are too narrow. A claim holds if its interval is above 0.",
        [
            ("Data", [str(provenance["data"]["source"])]),
            *((f"λ at {place}", list(said)) for place, said in provenance["conventions"].items()),
            *([("Notes", list(notes))] if notes else []),
        ],
        drawings,
        [_regressions(provenance["regressions"], places), *(_pairs(rows, place) for place in places)],
    )  # fmt: skip


def _times(rows: Sequence[Row], place: str) -> str:
    mine = [row for row in rows if row.regime == place and row.kind == "theorem 5.1"]
    gaps = {row.points: row.mean for row in mine if row.measure == "|gap|"}
    ratios = [row.mean / gaps[row.points] for row in mine if row.measure == "bound" and gaps[row.points]]
    return f"{min(ratios):.3g} to {max(ratios):.3g}" if ratios else "infinitely many"


def _regressions(found: Sequence[Mapping[str, Any]], places: Sequence[str]) -> Grid:
    values = {(line["at"], line["response"], line["regressor"]): line["r2"] for line in found}
    names = dict.fromkeys((line["response"], line["regressor"]) for line in found)
    body = tuple(
        (
            f"{response} on {regressor}",
            tuple(Cell(number(values.get((place, response, regressor), float("nan")))) for place in places),
        )
        for response, regressor in names
    )
    return Grid(
        "R² of regressions over all pairs", ("regression", *(f"λ at {place}" for place in places)), body
    )


def _pairs(rows: Sequence[Row], place: str) -> Grid:
    measures = ("gap", "exact term", "lambda", "|d|^2", "bound", "bound holds")
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.regime == place and row.kind == "theorem 5.1" and not row.measure.startswith(("R^2", "slope")):
            found.setdefault(row.points, {})[row.measure] = row
    body = []
    for name, values in found.items():
        cells = [Cell(f"{values[measure].mean:.3g}") for measure in measures[:-1]]
        body.append((name, (*cells, Cell("yes" if values["bound holds"].mean else "no"))))
    return Grid(f"Pairs, λ at {place}", ("pair", *measures), tuple(body))


PAGES: dict[str, Callable[[Sequence[Row], Mapping[str, Any]], Page]] = {
    "root-causes": _root_causes,
    "theorem-5.1": _theorem,
}
"""What ``run.yaml`` calls the study, to what makes its page."""

"""What pages of protocols say: terms with their sources, and numbers in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mergescope.reports.tables import Cell, number
from mergescope.studies.rundir import Row

TERMS: dict[str, tuple[str, str]] = {
    "task vector": (
        "what fine-tuning changed: the fine-tune’s weights less the base’s. Adding λ times the sum of all of them is "
        "task arithmetic; λ = 1/k for k tasks is the average of the models.",
        "TA",
    ),
    "normalised accuracy": (
        "accuracy on each task divided by that of the model fine-tuned on it in the same regime; the mean over tasks. "
        "1: as good as the single-task models.",
        "ATTN Eq. 5",
    ),
    "mean accuracy": ("the mean over data sets; every data set counts alike.", "TA"),
    "validation, test": (
        "everything is chosen on validation data and reported on test data, which are other samples and take no part "
        "in any choice.",
        "TA",
    ),
    "the grid’s end": (
        "if the best coefficient is the largest that was tried, a larger one might be better: the end binds, and what "
        "is reported is a lower bound of what the method can do.",
        "TA; TANGENT",
    ),
    "target, control": (
        "accuracy on the task that is to be forgotten, which should fall, and on control data (the other tasks, unless "
        "told otherwise), which should not.",
        "TA",
    ),
    "control rule": (
        "of all coefficients, only those count that keep a share of the base’s own control accuracy on validation "
        "data; among them, the lowest target accuracy wins.",
        "TA",
    ),
    "as it is, tuned": (
        "with the coefficient that the method itself says (λ = 1), which needs no labels; and with the λ that is best "
        "on labelled validation data.",
        "TA",
    ),
    "surrogate": (
        "a polynomial of the coefficients that predicts every sample’s outputs, fitted on few points. The search runs "
        "on it; candidates are confirmed by passes through the network on samples that were not optimised on, and the "
        "single coefficient is kept unless the gain is clear.",
        "second-order expansion around the base",
    ),
    "soup": (
        "one model with averaged weights. Uniform: all models; greedy: models in the order of their validation score, "
        "each kept if the average does not get worse.",
        "Wortsman et al. 2022",
    ),
    "ensemble": (
        "the mean of all models’ logits: as many forward passes as models. A soup costs one.",
        "CTL 4.2",
    ),
    "averaged weights, averaged logits": (
        "accuracy of f(mean of θ) against that of the mean of f(θ), over subsets of the models: if features are linear "
        "between models, both are the same.",
        "CTL 4.2, Fig. 4",
    ),
    "cos, coef": (
        "cosine and relative length of the averaged model’s features, seen against the average of the models’ "
        "features. Both are 1 if Eq. 1 holds; the baseline is the cosine between the models’ own features.",
        "CTL Eq. 1",
    ),
    "disentanglement error ξ(α₁, α₂)": (
        "how much adding another task’s vector changes what the model with one task’s vector says, on that task’s "
        "data; the sum over both tasks. 0: tasks don’t get in each other’s way. As shares of changed predictions it is "
        "at most 2.",
        "TANGENT; ATTN Property 4",
    ),
    "search box": (
        "the coefficients that task arithmetic searches; errors outside it matter less.",
        "TANGENT",
    ),
    "stitching, addition": (
        "the mean of two models’ features after a block (of base + 2λτ each) is given to the rest of the pretrained "
        "network, without any adapter. If features add up as weights do, it does for both tasks what either model’s "
        "features do for its own.",
        "CTL Fig. 9",
    ),
    "stitching, negation": (
        "twice the base’s features less those of base + λτ, given to the rest of the pretrained network, against the "
        "features of base − λτ. If features subtract as weights do, the curves agree.",
        "CTL Fig. 10",
    ),
    "predicted gap": (
        "features are expanded to second order around the base; of the gap of a merge, what is constant or linear in "
        "the weights cancels, and −a(1−a)/2 f″[τᵢ − τⱼ, τᵢ − τⱼ] is left. No merged model is run for it.",
        "CTL 5.1, its exact leading term",
    ),
    "third order takes over": (
        "the coefficient of a task vector at which all that follows the second order is as large as it. Below, the "
        "prediction gets better linearly.",
        "Taylor’s theorem",
    ),
    "interaction": (
        "|f″[τᵢ, τⱼ]| relative to √(|Jτᵢ| |Jτⱼ|): what two task vectors do together beyond what each does alone. "
        "Weight disentanglement asks it to vanish on either task’s data.",
        "TANGENT; ATTN Property 4",
    ),
    "largest eigenvalue λ": (
        "of the Hessian of the mean loss over weights, by Lanczos’ iteration on exact Hessian-vector products; the "
        "residual bounds its distance from an eigenvalue.",
        "Lanczos 1950",
    ),
    "bound": (
        "a(1−a)/2 λ |θᵢ − θⱼ|², which Theorem 5.1 puts above the gap of the loss, up to third order. λ replaces the "
        "curvature along θᵢ − θⱼ by the largest there is.",
        "CTL 5.1",
    ),
    "exact term": (
        "−a(1−a)/2 dᵀHd with d = θᵢ − θⱼ: the gap to second order, with its sign. It needs the base and both task "
        "vectors, and no merged model.",
        "CTL 5.1",
    ),
    "gap of the loss": (
        "the loss of the merged model less the same mean of both models’ losses, on one task’s data. Positive: a "
        "barrier.",
        "CTL 5.1, C.2",
    ),
    "premise, conclusion": (
        "a theorem says something only where its premises hold. Both are judged by thresholds that are told; where the "
        "conclusion holds as often without the premises, the theorem is not what makes it hold.",
        "CTL 3.3, 4.2, 4.3",
    ),
    "transitivity": (
        "if i and j are linear to each other, and j and k, then i and k are. Theorem 4.2 takes it for granted.",
        "CTL 4.2",
    ),
}
"""Term to what it means and where it is from."""

SOURCES = {
    "TA": "Ilharco et al., “Editing Models with Task Arithmetic”, ICLR 2023",
    "TANGENT": "Ortiz-Jimenez et al., “Task Arithmetic in the Tangent Space”, NeurIPS 2023",
    "ATTN": "Jin et al., “Fine-Tuning Attention Modules Only”, ICLR 2025, arXiv 2407.07089",
    "CTL": "Zhou et al., “On the Emergence of Cross-Task Linearity”, ICML 2024, arXiv 2402.03660",
    "Wortsman": "Wortsman et al., “Model soups”, ICML 2022",
}
"""Short name to paper."""


def sources_of(terms: Sequence[str]) -> list[str]:
    """The papers that terms are from.

    Args:
        terms: names of [`TERMS`][].

    Returns:
        Short name and paper, each once.

    Example:
        >>> [text.split(":")[0] for text in sources_of(["mean accuracy", "search box"])]
        ['TA', 'TANGENT']
    """
    said = " ".join(TERMS[term][1] for term in terms).replace(";", " ").split()
    return [f"{name}: {paper}." for name, paper in SOURCES.items() if name in said]


def told(row: Row, digits: int = 3, *, sign: bool = False) -> str:
    """A number with its interval.

    Args:
        row: of the results.
        digits: after the point.
        sign: whether positive numbers get one.

    Returns:
        Text.

    Example:
        >>> told(Row("", "", "", "", "", "", 0.5, low=0.4, high=0.6))
        '0.500 (0.400 to 0.600)'
        >>> told(Row("", "", "", "", "", "", 0.5))
        '0.500'
    """
    text = number(row.mean, digits, sign)
    if not (math.isfinite(row.low) and math.isfinite(row.high)):
        return text
    return f"{text} ({number(row.low, digits, sign)} to {number(row.high, digits, sign)})"


def cell(row: Row | None, digits: int = 3, *, bold: bool = False) -> Cell:
    """A number with its interval, for a table.

    Args:
        row: of the results; None for a dash.
        digits: after the point.
        bold: whether it stands out.

    Returns:
        The cell.

    Example:
        >>> cell(Row("", "", "", "", "", "", 0.5, low=0.4, high=0.6)).note
        '0.400 to 0.600'
    """
    if row is None:
        return Cell(number(math.nan))
    text, _, note = told(row, digits).partition(" (")
    return Cell(text, note.rstrip(")"), bold)


def listed(names: Sequence[str], most: int = 4) -> str:
    """Names in a sentence.

    Args:
        names: any number.
        most: that are named.

    Returns:
        ``"a, b and c"``; of too many the first ones, and how many more.

    Example:
        >>> listed(["a"]), listed(["a", "b", "c"]), listed(["a", "b", "c"], most=2)
        ('a', 'a, b and c', 'a, b and 1 more')
    """
    shown = list(names) if len(names) <= most else [*names[:most], f"{len(names) - most} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def apart(one: Row, other: Row) -> bool:
    """Whether two intervals don't overlap.

    Args:
        one: a number.
        other: another one.

    Returns:
        True if they are apart, which is a careful way to say that the numbers differ.

    Example:
        >>> low, high = (Row("", "", "", "", "", "", x, low=x - 0.1, high=x + 0.1) for x in (0.2, 0.6))
        >>> apart(low, high), apart(low, low)
        (True, False)
    """
    return one.high < other.low or other.high < one.low

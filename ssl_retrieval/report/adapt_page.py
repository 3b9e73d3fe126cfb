"""The page that says in plain words whether to use a network that was adapted to somebody's photos."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl_retrieval.report.page import render

_SAME_SIZE = (
    "Look at the photos below. All networks had inputs of the same size; a larger one costs more time and "
    "often finds more."
)

DOUBT = {
    "similar": (
        "This was decided without labels: by how firmly each photo keeps its neighbours when it is altered "
        "in ways that training never showed, and by how clear the groups are that photos form. That is a "
        f"sign of better search for other photos of the same object or kind, not a proof. {_SAME_SIZE}"
    ),
    "copies": (
        "This was decided by searching altered photos for their originals, among these very photos. "
        f"{_SAME_SIZE}"
    ),
}
"""Goal -> what the verdict rests on."""

SCORE = {
    "similar": (
        "by how much more than with the start the photos' neighbours hold when photos are altered, plus by "
        "how much clearer their groups are"
    ),
    "copies": (
        "by how much better than with the start altered photos find their originals (mean average "
        "precision); where chance may be all that sets two apart, the one that moves the photos less is used"
    ),
}
"""Goal -> what candidates are ordered by."""


def write_adapt_page(outcome: Any, examples: Sequence[Any], photos: Path) -> None:
    """Write ``report.html``.

    Args:
        outcome: An `adaptation.outcome.Outcome`.
        examples: Photos with what the start and the other network find, `adaptation.neighbours.Example`.
        photos: The folder that their ids are relative to.
    """
    best = max(
        (one for one in outcome.tried if one.score is not None), key=lambda one: one.score, default=None
    )
    other = outcome.chosen or (best.name if best else outcome.tried[0].name if outcome.tried else "")
    render(
        "adapt.html",
        outcome.page,
        title=outcome.headline,
        outcome=outcome,
        reason=_sentence(outcome.reason),
        doubt=DOUBT[outcome.goal],
        score=SCORE[outcome.goal],
        other=other,
        signals=list(outcome.tried[0].signals) if outcome.tried else [],
        groups=_groups(examples, photos),
    )


def _sentence(reason: str) -> str:
    """Give a reason without the verdict before it, which the heading says, as a sentence."""
    _, _, rest = reason.partition(": ") if reason.startswith(("keep ", "use ")) else ("", "", reason)
    text = rest or reason
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _groups(examples: Sequence[Any], photos: Path) -> dict[str, list[dict[str, Any]]]:
    """Sort the examples by why they are shown, with files in place of ids."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in examples:
        rows = [[(photos / photo, photo in other) for photo in found] for found, other in _both(one)]
        groups.setdefault(one.why, []).append(
            {"photo": photos / one.photo, "before": rows[0], "after": rows[1]}
        )
    return groups


def _both(one: Any) -> list[tuple[Sequence[str], Sequence[str]]]:
    return [(one.before, one.after), (one.after, one.before)]

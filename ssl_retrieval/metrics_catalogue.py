"""All metrics with their names, what divides them, and their definitions, for people to look up."""

from collections.abc import Callable
from dataclasses import dataclass

from ssl_retrieval.metrics import AT_K, FULL
from ssl_retrieval.metrics_classes import macro
from ssl_retrieval.metrics_global import gap, recall_at_p90, uap
from ssl_retrieval.metrics_knn import knn_accuracy

DIVIDED_BY = {
    "mAP": "R",
    "mAP_trapezoid": "R",
    "mAP@R": "R",
    "mAP@k": "min(R, k)",
    "precision@k": "k",
    "precision_revisited@k": "min(k, last rank)",
    "mMP@k": "min(R, k)",
    "recall@k": "R",
    "hit_rate@k": "1",
    "ndcg@k": "best possible sum",
    "r_precision": "R",
    "mrr": "1",
    "ns_score": "1 (0 to 4)",
    "knn@k": "1",
    "uap": "all relevant pairs",
    "recall_at_p90": "all relevant pairs",
    "gap": "queries with R > 0",
    "…_macro": "classes",
}
"""Name -> what a query's sum is divided by; R = its relevant items."""

_FUNCTIONS: dict[str, Callable[..., object]] = {
    **FULL,
    **{f"{stem}@k": function for stem, function in AT_K.items()},
    "knn@k": knn_accuracy,
    "uap": uap,
    "recall_at_p90": recall_at_p90,
    "gap": gap,
    "…_macro": macro,
}


@dataclass(frozen=True)
class Definition:
    """A metric in words.

    Attributes:
        name: As in configs and reports; ``k`` stands for a number.
        divided_by: Its normalisation.
        text: What it is, in one sentence.
    """

    name: str
    divided_by: str
    text: str


def catalogue() -> list[Definition]:
    """List all metrics.

    >>> catalogue()[0].text
    "mean, over all relevant items, of the precision at each one's rank; full ranking"
    """
    return [
        Definition(name, divided_by, _first_line(_FUNCTIONS[name])) for name, divided_by in DIVIDED_BY.items()
    ]


def _first_line(function: Callable[..., object]) -> str:
    """Take a docstring's first line without the name that it opens with."""
    line = (function.__doc__ or "").splitlines()[0]
    return line.partition(": ")[2].rstrip(".").replace("``", "")

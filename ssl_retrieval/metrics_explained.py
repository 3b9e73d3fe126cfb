"""One ranking, scored as every library would score it, with the reason wherever two numbers differ."""

import math
from dataclasses import dataclass

from ssl_retrieval import metrics
from ssl_retrieval import metrics_peers as peers
from ssl_retrieval.errors import UserError
from ssl_retrieval.metrics_one_ranking import OneRanking
from ssl_retrieval.metrics_peers import Peer, Reason

OURS = "ours"
WHOLE = 2**31
"""A cut-off beyond any list."""

ZERO = Reason(lambda one, k: one.num_relevant == 0, "a query without positives counts as 0; ours: no value")
LEFT_OUT = Reason(lambda one, k: one.num_relevant == 0, "a query without positives is left out of the mean")
SPOILS = Reason(lambda one, k: one.num_relevant == 0, "NaN, which makes the mean over all queries NaN")
REFUSED = Reason(lambda one, k: one.num_relevant == 0, "a query without positives stops it with an error")
OPEN_TIES = Reason(lambda one, k: one.is_tied, "the order of equal scores is left to an unstable sort")
TOGETHER = Reason(
    lambda one, k: one.shares_scores, "items with equal scores count together, at the last one's rank"
)
AVERAGED = Reason(lambda one, k: one.is_tied, "averaged over all orders of equal scores")
LISTED = Reason(
    lambda one, k: one.num_listed < one.num_relevant,
    "knows only the {hits} relevant items in the list, not all {R}",
)
FOUND = Reason(
    lambda one, k: int(one.hits[:k].sum()) < min(k, one.num_relevant),
    "divides by the hits that were found, so missing one costs nothing",
)
POSITIVE = Reason(
    lambda one, k: bool((one.scores[one.hits] <= 0).any()),
    "relevant items with a score ≤ 0 count as wrong: feed it no raw cosine",
)
TRAPEZOID = Reason(
    lambda one, k: bool((~one.hits[:-1] & one.hits[1:]).any()),
    "area by trapezoids: averages the precision before and at each hit",
)
ALL_RELEVANT = Reason(
    lambda one, k: one.num_relevant > k, "divides by all {R} relevant items, though {k} fit"
)
FETCHED = Reason(lambda one, k: one.num_relevant > k, "fetches {k} neighbours, fewer than R = {R}: too few")
SHRINKS = Reason(
    lambda one, k: 0 < one.num_relevant == one.num_listed and not one.hits[k - 1 :].any(),
    "k shrinks to the rank of the last relevant item",
)
FEWER = Reason(lambda one, k: 0 < one.num_relevant < k, "divides by min(R, k) = {R}")
FEWER_LOOKED_AT = Reason(lambda one, k: 0 < one.num_relevant < k, "looks at the first min(R, k) = {R} only")

SKLEARN, TORCHMETRICS, RANX = "scikit-learn", "torchmetrics", "ranx"
REVISITOP, GLDV2, UNED = "revisitop", "GLDv2", "UnED"
PML, OML = "pytorch-metric-learning", "open-metric-learning"

PEERS = (
    Peer(
        "mAP", SKLEARN, "average_precision_score", peers.scikit_learn_ap, (LISTED, TOGETHER, ZERO), "formula"
    ),
    Peer("mAP", REVISITOP, "compute_ap", peers.revisitop_ap, (TRAPEZOID, LEFT_OUT), "listed"),
    Peer("mAP", PML, "mean_average_precision", peers.pytorch_metric_learning_ap, (OPEN_TIES, LEFT_OUT)),
    Peer(
        "mAP",
        TORCHMETRICS,
        "retrieval_average_precision",
        peers.torchmetrics_ap,
        (FOUND, POSITIVE, OPEN_TIES, ZERO),
    ),
    Peer("mAP", RANX, "map", peers.ranx_ap, (OPEN_TIES, ZERO)),
    Peer(
        "mAP@k",
        PML,
        "mean_average_precision, k={k}",
        peers.pytorch_metric_learning_ap,
        (ALL_RELEVANT, OPEN_TIES, LEFT_OUT),
    ),
    Peer("mAP@k", OML, "map@{k}", peers.smaller_count_ap, (OPEN_TIES, SPOILS)),
    Peer(
        "mAP@k",
        TORCHMETRICS,
        "retrieval_average_precision, top_k={k}",
        peers.torchmetrics_ap,
        (FOUND, POSITIVE, OPEN_TIES, ZERO),
    ),
    Peer("mAP@k", RANX, "map@{k}", peers.ranx_ap, (ALL_RELEVANT, OPEN_TIES, ZERO)),
    Peer("mAP@100", GLDV2, "MeanAveragePrecision", peers.smaller_count_ap, (REFUSED,), "listed"),
    Peer(
        "mAP@R",
        PML,
        "mean_average_precision_at_r, k={k}",
        peers.pytorch_metric_learning_ap_at_r,
        (FETCHED, OPEN_TIES, LEFT_OUT),
    ),
    Peer("precision@k", REVISITOP, "mP@{k}", peers.revisitop_precision, (SHRINKS, LEFT_OUT), "listed"),
    Peer("precision@k", UNED, "mMP@{k}", peers.calibrated_precision, (FEWER_LOOKED_AT, REFUSED), "listed"),
    Peer(
        "precision@k", OML, "precision@{k}", peers.open_metric_learning_precision, (FEWER, OPEN_TIES, SPOILS)
    ),
    Peer(
        "precision@k",
        TORCHMETRICS,
        "retrieval_precision, top_k={k}",
        peers.torchmetrics_precision,
        (POSITIVE, OPEN_TIES, ZERO),
    ),
    Peer("precision@k", RANX, "precision@{k}", peers.plain_precision, (OPEN_TIES, ZERO)),
    Peer(
        "recall@k",
        TORCHMETRICS,
        "retrieval_recall, top_k={k}",
        peers.torchmetrics_recall,
        (LISTED, POSITIVE, OPEN_TIES, ZERO),
    ),
    Peer("recall@k", RANX, "recall@{k}", peers.ranx_recall, (OPEN_TIES, ZERO)),
    Peer("hit_rate@k", OML, "cmc@{k}", peers.any_hit, (OPEN_TIES, ZERO)),
    Peer("hit_rate@k", TORCHMETRICS, "retrieval_hit_rate, top_k={k}", peers.any_hit, (OPEN_TIES, ZERO)),
    Peer("hit_rate@k", RANX, "hit_rate@{k}", peers.any_hit, (OPEN_TIES, ZERO)),
    Peer("hit_rate@1", PML, "precision_at_1", peers.left_out(peers.any_hit), (OPEN_TIES, LEFT_OUT)),
    Peer(
        "r_precision",
        PML,
        "r_precision, k={k}",
        peers.pytorch_metric_learning_r_precision,
        (FETCHED, OPEN_TIES, LEFT_OUT),
    ),
    Peer(
        "r_precision",
        TORCHMETRICS,
        "retrieval_r_precision",
        peers.torchmetrics_r_precision,
        (LISTED, OPEN_TIES, ZERO),
    ),
    Peer("r_precision", RANX, "r-precision", peers.ranx_r_precision, (OPEN_TIES, ZERO)),
    Peer("ndcg@k", SKLEARN, "ndcg_score, k={k}", peers.averaged_ndcg, (LISTED, AVERAGED, ZERO), "formula"),
    Peer(
        "ndcg@k",
        TORCHMETRICS,
        "retrieval_normalized_dcg, top_k={k}",
        peers.averaged_ndcg,
        (LISTED, AVERAGED, ZERO),
        "formula",
    ),
    Peer("ndcg@k", RANX, "ndcg@{k}", peers.ranx_ndcg, (OPEN_TIES, ZERO)),
    Peer("mrr", PML, "mean_reciprocal_rank", peers.left_out(peers.first_hit), (OPEN_TIES, LEFT_OUT)),
    Peer(
        "mrr",
        TORCHMETRICS,
        "retrieval_reciprocal_rank",
        peers.torchmetrics_first_hit,
        (POSITIVE, OPEN_TIES, ZERO),
    ),
    Peer("mrr", RANX, "mrr", peers.first_hit, (OPEN_TIES, ZERO)),
)
"""Every library's version of each metric, by our metric that people take for the same."""


@dataclass(frozen=True)
class Verdict:
    """One number for a ranking.

    Attributes:
        metric: Our metric of that group.
        package: Whose number it is; ``ours`` opens a group.
        call: Function or key.
        low: The number; NaN = no value.
        high: Where the order of equal scores is left open, the other end; otherwise the same.
        reasons: Why it differs from ours; empty where it does not.
    """

    metric: str
    package: str
    call: str
    low: float
    high: float
    reasons: tuple[str, ...] = ()


def explain(one: OneRanking, k: int = 5) -> list[Verdict]:
    """Score a ranking as every library would.

    Args:
        one: The ranking.
        k: The cut-off of metrics that have one.

    Returns:
        Group by group, ours first.

    Raises:
        UserError: ``k`` is below 1.

    >>> verdicts = explain(OneRanking.make([1, 0, 1, 0], num_relevant=4))
    >>> [f"{verdict.package} {verdict.low:.3f}" for verdict in verdicts[:3]]
    ['ours 0.417', 'scikit-learn 0.833', 'revisitop 0.396']
    """
    if k < 1:
        raise UserError(f"k={k}: must be at least 1")
    verdicts: list[Verdict] = []
    for group in dict.fromkeys(peer.ours for peer in PEERS):
        name = group.replace("@k", f"@{k}")
        ours = float(metrics.compute(name, one.ranks)[0])
        verdicts.append(Verdict(name, OURS, name, ours, ours, _band(name, one)))
        verdicts += [_verdict(peer, name, ours, one, k) for peer in PEERS if peer.ours == group]
    return verdicts


def _verdict(peer: Peer, name: str, ours: float, one: OneRanking, k: int) -> Verdict:
    cut = {"mAP": WHOLE, "mAP@100": 100, "hit_rate@1": 1}.get(peer.ours, k)
    orders = list(one.orders(cut)) if peer.ties == "open" else [one.hits]
    values = [peer.formula(one, hits, cut) for hits in orders]
    low, high = min(values), max(values)
    same = all(math.isclose(value, ours, abs_tol=1e-12) for value in (low, high))
    reasons = [reason.text for reason in peer.reasons if reason.applies(one, cut)]
    if low == high and OPEN_TIES.text in reasons:
        reasons.remove(OPEN_TIES.text)
    words = {"hits": one.num_listed, "R": one.num_relevant, "k": cut}
    texts = () if same else tuple(text.format(**words) for text in reasons)
    return Verdict(name, peer.package, peer.call.format(k=k), low, high, texts)


def _band(name: str, one: OneRanking) -> tuple[str, ...]:
    low, high = (float(metrics.compute(f"{name}_{end}", one.ranks)[0]) for end in ("worst", "best"))
    if not low < high:
        return ()
    return (f"equal scores in the order given; other orders give {low:.4f} to {high:.4f}",)

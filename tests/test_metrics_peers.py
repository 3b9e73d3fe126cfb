"""Restated formulas against the libraries that they are of; and the libraries' traps, by name."""

import logging
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.metrics import average_precision_score, ndcg_score

from ssl_retrieval import metrics_peers as peers
from ssl_retrieval.metrics import compute
from ssl_retrieval.metrics_one_ranking import OneRanking
from ssl_retrieval.search import relevant_ranks
from ssl_retrieval.types import VectorArray

GOLDEN = OneRanking.make([1, 0, 1, 0, 0, 0, 0, 1, 0, 1])

# Few distinct scores of either sign, exact in float32: ties and the sign matter in most lists.
rankings = st.builds(
    lambda items: OneRanking.make([hit for hit, _ in items], [score / 4 for _, score in items]),
    st.lists(st.tuples(st.sampled_from([0, 1]), st.integers(-3, 6)), min_size=2, max_size=20),
)
untied = st.builds(
    lambda hits: OneRanking.make(hits), st.lists(st.sampled_from([0, 1]), min_size=2, max_size=20)
)


@settings(deadline=None)
@given(one=rankings, k=st.integers(1, 25))
def test_scikit_learn(one: OneRanking, k: int) -> None:
    truth = one.hits.astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "No positive class found in y_true"
        theirs = average_precision_score(truth, one.scores)
    assert peers.scikit_learn_ap(one, one.hits, k) == pytest.approx(theirs, abs=1e-12)
    ndcg = ndcg_score([truth], [one.scores], k=k)
    assert peers.averaged_ndcg(one, one.hits, k) == pytest.approx(ndcg, abs=1e-12)


def torchmetrics_says(name: str, one: OneRanking, top_k: int | None = None) -> float:
    retrieval = pytest.importorskip("torchmetrics.functional.retrieval")
    options = {} if top_k is None else {"top_k": top_k}
    scores, hits = torch.tensor(one.scores, dtype=torch.float32), torch.tensor(one.hits)
    return float(getattr(retrieval, f"retrieval_{name}")(scores, hits, **options))


@settings(deadline=None)
@given(one=untied, k=st.integers(1, 25), shift=st.integers(0, 20))
def test_torchmetrics(one: OneRanking, k: int, shift: int) -> None:
    """Distinct scores, of which a shift makes some negative."""
    one = OneRanking.make(one.hits.astype(int).tolist(), (one.scores - shift).tolist())
    cut: dict[str, peers.Formula] = {
        "average_precision": peers.torchmetrics_ap,
        "precision": peers.torchmetrics_precision,
        "recall": peers.torchmetrics_recall,
        "hit_rate": peers.any_hit,
        "normalized_dcg": peers.averaged_ndcg,
    }
    for name, formula in cut.items():
        assert formula(one, one.hits, k) == pytest.approx(torchmetrics_says(name, one, k), abs=1e-6), name
    whole: dict[str, peers.Formula] = {
        "r_precision": peers.torchmetrics_r_precision,
        "reciprocal_rank": peers.torchmetrics_first_hit,
    }
    for name, formula in whole.items():
        assert formula(one, one.hits, 99) == pytest.approx(torchmetrics_says(name, one), abs=1e-6), name


@pytest.mark.slow  # ranx compiles its metrics with numba first
def test_ranx() -> None:
    import ranx

    rng = np.random.default_rng(0)
    lists = [OneRanking.make([int(hit) for hit in rng.random(12) < 0.3], num_relevant=9) for _ in range(60)]
    qrels, run = {}, {}
    for i, one in enumerate(lists):
        listed = [f"d{rank:02}" for rank in range(12)]
        found = [name for name, hit in zip(listed, one.hits, strict=True) if hit]
        unlisted = [f"u{j}" for j in range(9 - len(found))]
        qrels[f"q{i:02}"] = dict.fromkeys([*found, *unlisted], 1)
        run[f"q{i:02}"] = dict(zip(listed, one.scores.tolist(), strict=True))
    formulas: dict[str, tuple[peers.Formula, int]] = {
        "map": (peers.ranx_ap, 99),
        "map@5": (peers.ranx_ap, 5),
        "precision@5": (peers.plain_precision, 5),
        "recall@5": (peers.ranx_recall, 5),
        "hit_rate@5": (peers.any_hit, 5),
        "r-precision": (peers.ranx_r_precision, 99),
        "ndcg@5": (peers.ranx_ndcg, 5),
        "mrr": (peers.first_hit, 99),
    }
    theirs = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(run), list(formulas), return_mean=False)
    for name, (formula, k) in formulas.items():
        ours = [formula(one, one.hits, k) for one in lists]
        np.testing.assert_allclose(ours, theirs[name], atol=1e-9, err_msg=name)


def line_of(one: OneRanking) -> tuple[VectorArray, VectorArray]:
    """Place one query at 0 and the items behind it on a line, in the order of the ranking."""
    return np.zeros((1, 1), np.float32), np.arange(1, len(one.hits) + 1, dtype=np.float32)[:, None]


def metric_learning_says(one: OneRanking, k: int | None) -> dict[str, float]:
    query, reference = line_of(one)
    calculator = AccuracyCalculator(exclude=("AMI", "NMI"), k=k, device=torch.device("cpu"))
    labels = torch.tensor([1]), torch.tensor(one.hits.astype(int))
    return calculator.get_accuracy(torch.tensor(query), labels[0], torch.tensor(reference), labels[1])


@settings(deadline=None)
@given(one=untied, k=st.integers(1, 20))
def test_pytorch_metric_learning(one: OneRanking, k: int) -> None:
    logging.disable(logging.WARNING)
    k = min(k, len(one.hits))
    theirs = metric_learning_says(one, k)
    formulas: dict[str, peers.Formula] = {
        "mean_average_precision": peers.pytorch_metric_learning_ap,
        "mean_average_precision_at_r": peers.pytorch_metric_learning_ap_at_r,
        "r_precision": peers.calibrated_precision,
        "precision_at_1": lambda one, hits, k: peers.left_out(peers.any_hit)(one, hits, 1),
        "mean_reciprocal_rank": lambda one, hits, k: peers.left_out(peers.first_hit)(one, hits[:k], k),
    }
    for name, formula in formulas.items():
        expected = pytest.approx(theirs[name], abs=1e-6, nan_ok=True)
        assert formula(one, one.hits, k) == expected, name
    logging.disable(logging.NOTSET)


def revisitop_loop(ranks: list[int], num_relevant: int, k: int) -> tuple[float, float]:
    """Walk as revisitop's evaluate.py describes: 0-based ranks, then its precision at the shrunk k."""
    area = 0.0
    for found, rank in enumerate(ranks):
        before = 1.0 if rank == 0 else found / rank
        area += (before + (found + 1) / (rank + 1)) / 2 / num_relevant
    depth = min(max(ranks) + 1, k)
    return area, sum(rank < depth for rank in ranks) / depth


@given(one=untied.filter(lambda one: one.num_listed > 0), k=st.integers(1, 25))
def test_revisitop(one: OneRanking, k: int) -> None:
    area, precision = revisitop_loop(np.flatnonzero(one.hits).tolist(), one.num_relevant, k)
    assert peers.revisitop_ap(one, one.hits, k) == pytest.approx(area, abs=1e-12)
    assert peers.revisitop_precision(one, one.hits, k) == pytest.approx(precision, abs=1e-12)
    assert compute(f"precision_revisited@{k}", one.ranks)[0] == pytest.approx(precision, abs=1e-12)
    assert compute("mAP_trapezoid", one.ranks)[0] == pytest.approx(area, abs=1e-12)


@given(one=untied, missing=st.integers(0, 5), k=st.integers(1, 25))
def test_gldv2_uned_and_open_metric_learning(one: OneRanking, missing: int, k: int) -> None:
    """Loops after `MeanAveragePrecision`, `CalibratedPrecision`, `calc_map` and `calc_precision`."""
    total = one.num_listed + missing
    one = OneRanking.make(one.hits.astype(int).tolist(), num_relevant=total)
    if total == 0:
        assert np.isnan(peers.smaller_count_ap(one, one.hits, k))
        return
    right, average_precision = 0, 0.0
    for rank, hit in enumerate(one.hits[:k], 1):
        right += int(hit)
        average_precision += right / rank * hit / min(total, k)
    assert peers.smaller_count_ap(one, one.hits, k) == pytest.approx(average_precision, abs=1e-12)
    assert compute(f"mAP@{k}", one.ranks)[0] == pytest.approx(average_precision, abs=1e-12)
    calibrated = sum(one.hits[: min(total, k)]) / min(total, k)
    assert peers.calibrated_precision(one, one.hits, k) == pytest.approx(calibrated)
    assert compute(f"mMP@{k}", one.ranks)[0] == pytest.approx(calibrated)
    assert peers.open_metric_learning_precision(one, one.hits, k) == pytest.approx(right / min(total, k))


def test_trap_ap_at_k_has_three_denominators() -> None:
    """Relevant at 1, 3, 8 and 10, cut at 5; then six relevant items, of which two fit."""
    assert peers.smaller_count_ap(GOLDEN, GOLDEN.hits, 5) == pytest.approx(0.4167, abs=5e-5)
    assert torchmetrics_says("average_precision", GOLDEN, 5) == pytest.approx(0.8333, abs=5e-5)
    many = OneRanking.make([1, 1, 0, 1, 1, 1, 1])
    values = [formula(many, many.hits, 2) for formula in (peers.smaller_count_ap, peers.ranx_ap)]
    assert values == pytest.approx([2 / 2, 2 / 6])


def test_trap_revisitop_shrinks_k_to_the_last_relevant_rank() -> None:
    one = OneRanking.make([1, 0, 1, 0, 0, 0, 0, 0, 0, 0])
    assert compute("precision@10", one.ranks)[0] == 0.2
    assert compute("precision_revisited@10", one.ranks)[0] == pytest.approx(2 / 3)


def test_trap_precision_at_k_forgives_queries_with_few_relevant_items_in_two_ways() -> None:
    """Two relevant items, the second at rank 4: open-metric-learning still sees it, UnED does not."""
    one = OneRanking.make([1, 0, 0, 1, 0])
    assert peers.open_metric_learning_precision(one, one.hits, 5) == 1
    assert compute("mMP@5", one.ranks)[0] == peers.calibrated_precision(one, one.hits, 5) == 0.5
    assert compute("precision@5", one.ranks)[0] == 0.4


def test_trap_a_relevant_item_that_is_not_listed_costs_nothing() -> None:
    one = OneRanking.make([1, 0, 1, 0], num_relevant=4)
    assert average_precision_score(one.hits.astype(int), one.scores) == pytest.approx(0.8333, abs=5e-5)
    assert torchmetrics_says("average_precision", one) == pytest.approx(0.8333, abs=5e-5)
    assert compute("mAP", one.ranks)[0] == pytest.approx(0.4167, abs=5e-5)


def test_trap_torchmetrics_drops_relevant_items_with_scores_up_to_zero() -> None:
    """The same order of cosines, once shifted above zero."""
    shifted, raw = [1.9, 1.5, 1.0, 0.2], [0.9, 0.5, 0.0, -0.8]
    ranked = [OneRanking.make([1, 0, 1, 1], scores) for scores in (shifted, raw)]
    values = [torchmetrics_says("average_precision", one) for one in ranked]
    assert values == pytest.approx([(1 + 2 / 3 + 3 / 4) / 3, 1.0])
    assert [compute("mAP", one.ranks)[0] for one in ranked] == pytest.approx([values[0]] * 2)


def test_trap_a_query_without_positives_is_0_or_dropped_or_no_value() -> None:
    nothing = OneRanking.make([0, 0, 0])
    assert torchmetrics_says("average_precision", nothing) == 0
    with pytest.warns(UserWarning, match="No positive class"):
        assert average_precision_score([0, 0, 0], nothing.scores) == 0
    assert np.isnan(metric_learning_says(nothing, None)["mean_average_precision"])
    vectors = torch.tensor([[0.0], [1.0], [10.0]])
    calculator = AccuracyCalculator(include=("precision_at_1",), k=1, device=torch.device("cpu"))
    found = calculator.get_accuracy(vectors, torch.tensor([0, 0, 7]))
    assert found == {"precision_at_1": 1.0}, "the lone third image is not in the mean"
    assert np.isnan(compute("mAP", nothing.ranks)[0])


def test_trap_ties_are_counted_together_or_left_to_an_unstable_sort() -> None:
    values = {}
    for place in (0, 3, 9):
        hits = [int(i == place) for i in range(10)]
        one = OneRanking.make(hits, [0.5] * 10)
        values[place] = average_precision_score(hits, one.scores), torchmetrics_says("average_precision", one)
        low, high = (compute(f"mAP_{end}", one.ranks)[0] for end in ("worst", "best"))
        assert (low, high) == (pytest.approx(0.1), 1.0)
        assert low - 1e-6 <= values[place][1] <= high
        assert compute("mAP", one.ranks)[0] == pytest.approx(1 / (place + 1))
    assert {sklearn for sklearn, _ in values.values()} == {0.1}
    assert len({torchmetrics for _, torchmetrics in values.values()}) > 1


def test_trap_scikit_learn_counts_tied_relevant_items_together_too() -> None:
    """No order of the two tied relevant items makes a difference, yet their precision is the last one's."""
    one = OneRanking.make([0, 1, 1], [0.9, 0.5, 0.5])
    assert not one.is_tied
    assert compute("mAP", one.ranks)[0] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert average_precision_score(one.hits.astype(int), one.scores) == pytest.approx(2 / 3)


def test_trap_pytorch_metric_learning_confuses_labels_from_2_to_the_24() -> None:
    """Casting labels to float32 makes 2^24 and 2^24 + 1 the same class."""
    vectors = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    calculator = AccuracyCalculator(include=("precision_at_1",), k=1, device=torch.device("cpu"))
    small, large = (
        calculator.get_accuracy(vectors, torch.tensor([0, 1, 0, 1]) + offset)["precision_at_1"]
        for offset in (0, 2**24)
    )
    assert (small, large) == (0, 1)


def test_trap_pytorch_metric_learnings_map_at_r_is_wrong_if_k_is_below_r() -> None:
    one = OneRanking.make([1, 1, 0, 1, 1])
    logging.disable(logging.WARNING)
    fetched = {k: metric_learning_says(one, k)["mean_average_precision_at_r"] for k in (2, 5)}
    logging.disable(logging.NOTSET)
    assert fetched[5] == pytest.approx(compute("mAP@R", one.ranks)[0]) == pytest.approx((1 + 1 + 3 / 4) / 4)
    assert fetched[2] == pytest.approx(2 / 4)


def test_trap_a_duplicate_of_the_query_comes_first_and_dropping_rank_1_drops_the_duplicate() -> None:
    """Query 0 and its exact copy 2 tie at the top; only the id tells them apart."""
    gallery = np.array([[1, 0], [0.9, 0.1], [1, 0]], np.float32)
    by_id = relevant_ranks(gallery[2:], gallery, [np.array([0])], [np.array([2])])
    assert compute("mAP", by_id)[0] == 1
    whole = relevant_ranks(gallery[2:], gallery, [np.array([0])])
    assert whole.ranks.tolist() == [[1]], "rank 1 is the relevant copy, not the query itself"


def test_trap_numpy_has_no_in1d_any_more() -> None:
    """revisitop and its copies call it."""
    if np.lib.NumpyVersion(np.__version__) < "2.4.0":
        pytest.skip("gone since NumPy 2.4")
    with pytest.raises(AttributeError):
        _ = np.in1d  # type: ignore[attr-defined]

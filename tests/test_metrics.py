"""Metrics against hand-derived values, plain loops and three public implementations."""

import numpy as np
import pytest
import ranx
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.metrics import average_precision_score, ndcg_score

from ssl_retrieval.errors import UserError
from ssl_retrieval.metrics import DEFAULT_METRICS, compute
from ssl_retrieval.search import RelevantRanks, relevant_ranks

BOUNDED = (*DEFAULT_METRICS, "mAP@3", "recall@3", "ndcg@3", "precision@4", "hit_rate@3")


def found_at(*queries: list[int], num_relevant: list[int] | None = None, n: int = 50) -> RelevantRanks:
    """Make ranks by hand: one ascending list of 1-based ranks per query."""
    table = np.zeros((len(queries), max(len(ranks) for ranks in queries)), np.int64)
    for row, ranks in zip(table, queries, strict=True):
        row[: len(ranks)] = ranks
    counts = np.array(num_relevant or [len(ranks) for ranks in queries], np.int64)
    return RelevantRanks(table, table, table, counts, np.full(len(queries), n, np.int64))


def random_ranks(seed: int, num_queries: int = 40, n: int = 60) -> RelevantRanks:
    """Draw ranks of 1 to 20 relevant items among ``n``."""
    rng = np.random.default_rng(seed)
    lists = [
        np.sort(rng.choice(n, rng.integers(1, 21), replace=False) + 1).tolist() for _ in range(num_queries)
    ]
    return found_at(*lists, n=n)


def rank_lists(ranks: RelevantRanks) -> list[list[int]]:
    """Give the ranks of each query without padding."""
    return [row[row > 0].tolist() for row in ranks.ranks]


@pytest.mark.parametrize(
    ("name", "exact", "four_digits"),
    [
        ("mAP", (1 / 1 + 2 / 3 + 3 / 8 + 4 / 10) / 4, 0.6104),
        (
            "mAP_trapezoid",
            ((1 + 1) + (1 / 2 + 2 / 3) + (2 / 7 + 3 / 8) + (3 / 9 + 4 / 10)) / 8,
            0.5701,
        ),
        ("mAP@5", (1 + 2 / 3) / 4, 0.4167),
        ("mAP@R", (1 + 2 / 3) / 4, 0.4167),
        ("precision@5", 2 / 5, 0.4),
        ("mAP@3", (1 + 2 / 3) / 3, 0.5556),
        ("mAP@10", (1 / 1 + 2 / 3 + 3 / 8 + 4 / 10) / 4, 0.6104),
        ("recall@5", 2 / 4, 0.5),
        ("hit_rate@1", 1.0, 1.0),
        ("r_precision", 2 / 4, 0.5),
        ("mrr", 1.0, 1.0),
        ("ns_score", 2.0, 2.0),
        (
            "ndcg@5",
            (1 + 1 / 2) / (1 + 1 / np.log2(3) + 1 / 2 + 1 / np.log2(5)),
            0.5856,
        ),
    ],
)
def test_ten_items_with_relevant_ones_at_1_3_8_10(name: str, exact: float, four_digits: float) -> None:
    value = compute(name, found_at([1, 3, 8, 10], n=10))[0]
    assert value == pytest.approx(exact, abs=1e-12)
    assert value == pytest.approx(four_digits, abs=5.1e-5)


@pytest.mark.parametrize(
    ("name", "exact", "three_digits"),
    [
        ("mAP", (1 + 2 / 3) / 4, 0.417),
        ("mAP@4", (1 + 2 / 3) / 4, 0.417),
        ("mAP_trapezoid", ((1 + 1) + (1 / 2 + 2 / 3)) / 8, 0.396),
    ],
)
def test_two_of_four_relevant_items_were_never_found(name: str, exact: float, three_digits: float) -> None:
    value = compute(name, found_at([1, 3], num_relevant=[4]))[0]
    assert value == pytest.approx(exact, abs=1e-12)
    assert value == pytest.approx(three_digits, abs=5.1e-4)


def loop_values(name: str, ranks: list[int], num_relevant: int) -> float:
    """Compute a metric item by item, walking down the ranking."""
    stem, _, cut = name.partition("@")
    depth = {"": 10**6, "R": num_relevant}.get(cut) or int(cut)
    hits, total, gain, first = 0, 0.0, 0.0, 0.0
    for rank in range(1, max(ranks) + 1):
        if rank in ranks and rank <= depth:
            hits += 1
            total += hits / rank
            gain += 1 / np.log2(1 + rank)
            first = first or 1 / rank
    best_gain = sum(1 / np.log2(1 + rank) for rank in range(1, min(depth, num_relevant) + 1))
    return {
        "mAP": total / min(num_relevant, depth),
        "precision": hits / depth,
        "recall": hits / num_relevant,
        "hit_rate": float(hits > 0),
        "ndcg": gain / best_gain,
        "mrr": first,
    }[stem]


@pytest.mark.parametrize(
    "name",
    ["mAP", "mAP@R", "mAP@7", "mAP@1", "precision@7", "recall@7", "hit_rate@7", "ndcg@7", "ndcg@100", "mrr"],
)
def test_plain_loop_agrees(name: str) -> None:
    ranks = random_ranks(seed=0)
    expected = [loop_values(name, row, len(row)) for row in rank_lists(ranks)]
    np.testing.assert_allclose(compute(name, ranks), expected, atol=1e-12)


def test_trapezoid_is_the_area_under_the_precision_recall_curve() -> None:
    ranks = random_ranks(seed=1)
    for value, row in zip(compute("mAP_trapezoid", ranks), rank_lists(ranks), strict=True):
        area = 0.0
        for hits_before, rank in enumerate(row):
            before = 1.0 if rank == 1 else hits_before / (rank - 1)
            area += (before + (hits_before + 1) / rank) / 2 / len(row)
        assert value == pytest.approx(area, abs=1e-12)


def test_scikit_learn_agrees_on_full_average_precision_and_ndcg() -> None:
    ranks = random_ranks(seed=2)
    scores = -np.arange(60.0)
    truths = np.zeros((40, 60))
    for truth, row in zip(truths, rank_lists(ranks), strict=True):
        truth[np.array(row) - 1] = 1
    expected = [average_precision_score(truth, scores) for truth in truths]
    np.testing.assert_allclose(compute("mAP", ranks), expected, atol=1e-9)
    ndcg = [ndcg_score([truth], [scores], k=10) for truth in truths]
    np.testing.assert_allclose(compute("ndcg@10", ranks), ndcg, atol=1e-9)


@pytest.mark.slow  # ranx compiles its metrics with numba first
def test_ranx_agrees() -> None:
    ranks = random_ranks(seed=3)
    lists = rank_lists(ranks)
    qrels = ranx.Qrels({f"q{i:02}": {f"d{rank}": 1 for rank in row} for i, row in enumerate(lists)})
    run = ranx.Run({f"q{i:02}": {f"d{rank}": 1.0 / rank for rank in range(1, 61)} for i in range(len(lists))})
    names = {
        "mAP": "map",
        "precision@10": "precision@10",
        "recall@10": "recall@10",
        "hit_rate@5": "hit_rate@5",
        "ndcg@10": "ndcg@10",
        "r_precision": "r-precision",
        "mrr": "mrr",
    }
    theirs = ranx.evaluate(qrels, run, [*names.values(), "map@10"], return_mean=False)
    for ours, name in names.items():
        np.testing.assert_allclose(compute(ours, ranks), theirs[name], atol=1e-6, err_msg=ours)
    # ranx divides AP@k by all relevant items, where we divide by those that fit into the top k.
    rescaled = compute("mAP@10", ranks) * np.minimum(ranks.num_relevant, 10) / ranks.num_relevant
    np.testing.assert_allclose(rescaled, theirs["map@10"], atol=1e-6)


def test_pytorch_metric_learning_agrees() -> None:
    rng = np.random.default_rng(4)
    labels = np.repeat(np.arange(12), 10)
    vectors = (rng.normal(size=(120, 16)) + labels[:, None] % 5).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    itself = [np.array([i]) for i in range(120)]
    same = [np.setdiff1d(np.flatnonzero(labels == labels[i]), [i]) for i in range(120)]
    ranks = relevant_ranks(vectors, vectors, same, itself)
    names = {
        "mAP@R": "mean_average_precision_at_r",
        "r_precision": "r_precision",
        "precision@1": "precision_at_1",
    }
    calculator = AccuracyCalculator(include=tuple(names.values()), k=119, device=torch.device("cpu"))
    theirs = calculator.get_accuracy(torch.from_numpy(vectors), torch.from_numpy(labels))
    for ours, name in names.items():
        assert compute(ours, ranks).mean() == pytest.approx(theirs[name], abs=1e-6), ours


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.sets(st.integers(1, 30), max_size=12), min_size=1, max_size=5),
    num_missed=st.integers(0, 3),
)
def test_metrics_stay_between_0_and_1_and_are_nan_without_positives(
    rows: list[set[int]], num_missed: int
) -> None:
    num_relevant = [len(row) + num_missed for row in rows]
    ranks = found_at(*[sorted(row) for row in rows], num_relevant=num_relevant, n=33)
    for name in BOUNDED:
        values = compute(name, ranks)
        assert values.dtype == np.float64
        assert (np.isnan(values) == (np.array(num_relevant) == 0)).all(), name
        present = values[~np.isnan(values)]
        assert ((present >= 0) & (present <= 1 + 1e-12)).all(), name


@settings(max_examples=200, deadline=None)
@given(data=st.data(), row=st.sets(st.integers(1, 30), min_size=1, max_size=12))
def test_moving_a_relevant_item_up_never_lowers_a_metric(data: st.DataObject, row: set[int]) -> None:
    moved = data.draw(st.sampled_from(sorted(row)))
    free = sorted(set(range(1, moved + 1)) - row) or [moved]
    higher = data.draw(st.sampled_from(free))
    before, after = found_at(sorted(row)), found_at(sorted(row - {moved} | {higher}))
    for name in (*BOUNDED, "ns_score"):
        assert compute(name, after)[0] >= compute(name, before)[0] - 1e-12, name


@pytest.mark.parametrize("name", BOUNDED)
def test_perfect_ranking_scores_one(name: str) -> None:
    num_relevant = 3 if name == "recall@3" else 10
    assert compute(name, found_at(list(range(1, num_relevant + 1))))[0] == pytest.approx(1)


def test_precision_does_not_shrink_k_to_the_number_of_candidates_or_positives() -> None:
    assert compute("precision@10", found_at([1, 2], n=2))[0] == 0.2


def test_ns_score_counts_the_query_itself_among_four() -> None:
    scores = compute("ns_score", found_at([1, 2, 3, 4], [1, 4, 5, 9], [5, 6, 7, 8]))
    assert scores.tolist() == [4, 2, 0]


def test_tie_band_encloses_the_value() -> None:
    gallery = np.ones((4, 1), np.float32)
    ranks = relevant_ranks(gallery[:1], gallery, [np.array([1])])
    values = {name: compute(name, ranks)[0] for name in ("mAP", "mAP_best", "mAP_worst", "hit_rate@1_best")}
    assert values == {"mAP": 1 / 2, "mAP_best": 1, "mAP_worst": 1 / 4, "hit_rate@1_best": 1}


def test_chunks_do_not_change_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = random_ranks(seed=5)
    whole = {name: compute(name, ranks) for name in DEFAULT_METRICS}
    monkeypatch.setattr("ssl_retrieval.metrics.CHUNK_ENTRIES", 70)
    for name, values in whole.items():
        assert (compute(name, ranks) == values).all(), name


def test_no_query_and_no_relevant_item() -> None:
    empty = relevant_ranks(np.empty((0, 2), np.float32), np.ones((3, 2), np.float32), [])
    nothing_relevant = found_at([], [])
    for name in (*BOUNDED, "ns_score"):
        assert compute(name, empty).shape == (0,)
        assert np.isnan(compute(name, nothing_relevant)).all()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("map", "mAP"),
        ("recal@10", "recall@k"),
        ("recall", "recall@k"),
        ("hitrate@1", "hit_rate@k"),
        ("precision@0", "precision@k"),
        ("nDCG@5", "ndcg@k"),
        ("R-precision", "r_precision"),
        ("mAP@r", "mAP@R"),
        ("zzz", "mAP_trapezoid"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UserError, match=rf"unknown metric '{name}'.*\b{nearest}[, ]"):
        compute(name, found_at([1]))


def test_every_default_metric_is_computed_and_at_r_differs_from_at_k() -> None:
    ranks = random_ranks(seed=7)
    means = {name: compute(name, ranks).mean() for name in DEFAULT_METRICS}
    assert np.isfinite(list(means.values())).all()
    assert means["mAP@R"] < means["mAP"] <= means["mAP@100"]
    assert means["hit_rate@1"] <= means["hit_rate@5"] <= means["hit_rate@10"]

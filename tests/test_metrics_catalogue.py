"""Every metric that can be asked for is described."""

from ssl_retrieval import metrics
from ssl_retrieval.measuring import POOLED
from ssl_retrieval.metrics_catalogue import DIVIDED_BY, catalogue


def test_all_metrics_are_described_and_nothing_else() -> None:
    of_ranks = {*metrics.FULL, *(f"{stem}@k" for stem in metrics.AT_K)}
    assert {*of_ranks, *POOLED, "gap", "knn@k", "…_macro"} == DIVIDED_BY.keys()
    assert set(metrics.ELSEWHERE) == {*POOLED, "gap", "knn@k"}


def test_definitions_are_sentences_without_markup() -> None:
    for definition in catalogue():
        assert 20 < len(definition.text) < 110, definition
        assert "`" not in definition.text

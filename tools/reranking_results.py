"""Print the tables of docs/reranking.md from finished runs of configs/compare/rerank*.yaml.

    python tools/reranking_results.py runs/rerank_grocery runs/rerank_ukbench

Every re-ranked rung is held against the rung that it re-ranks, on the same queries: the mean difference in
mAP with its 95 % bootstrap interval, and the p-value of the paired test after Holm's adjustment in the table.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ssl_retrieval.report.files import read_report
from ssl_retrieval.report.markdown import markdown_table
from ssl_retrieval.report.numbers import format_count, format_score
from ssl_retrieval.resampling import of_report
from ssl_retrieval.statistics import holm, paired_test
from ssl_retrieval.types import Report

HEADER = (
    "rung",
    "mAP",
    "gain [95 %]",
    "p (Holm)",
    "hit@1",
    "search ms",
    "re-rank ms",
    "gallery s",
    "bytes/image",
)
COSTS = ("rerank_ms_per_query", "rerank_offline_s", "bytes_per_image")


def table(run: Path) -> str:
    """Give the table of one run as Markdown."""
    found = [read_report(file) for file in sorted((run / "reports").glob("*.json"))]
    by_name = {str(report.representation["name"]): report for report in found}
    recipes = {name: report.config.get("derived", {}).get(name, {}) for name, report in by_name.items()}
    reranked = [name for name, recipe in recipes.items() if recipe.get("rerank")]
    order = pd.read_csv(run / "table.csv")["representation"].drop_duplicates().tolist()
    tests = {
        name: paired_test(
            by_name[name].per_query["mAP"],
            by_name[recipes[name]["of"][0]].per_query["mAP"],
            groups=of_report(by_name[name]).groups,
        )
        for name in order
        if name in reranked
    }
    adjusted = dict(zip(tests, holm([test.p_value for test in tests.values()]), strict=True))
    lines: list[Sequence[str]] = [HEADER]
    for name in order:
        report = by_name[name]
        test = tests.get(name)
        steps = ", ".join(f"`{step}`" for step in recipes[name].get("rerank", []))
        lines.append(
            (
                f"{name}: {steps}" if steps else name,
                _mean(report, "mAP"),
                f"{test.mean:+.3f} [{test.low:+.3f}, {test.high:+.3f}]" if test else "–",
                f"{adjusted[name]:.3g}" if test else "–",
                _mean(report, "hit_rate@1"),
                format_count(1000 / (report.costs["search_queries_per_s"] or np.nan)),
                *(format_count(report.costs.get(key)) for key in COSTS),
            )
        )
    first = found[0]
    title = (
        f"`{first.task}`: {first.info['num_queries']:,} queries, {first.info['num_gallery']:,} gallery images"
    )
    return f"{title}\n\n" + markdown_table(lines)


def _mean(report: Report, metric: str) -> str:
    return format_score(float(np.nanmean(report.per_query[metric])), metric)


def main() -> None:
    """Print one table per run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="out folders of finished runs")
    print("\n\n".join(table(run) for run in parser.parse_args().runs))


if __name__ == "__main__":
    main()

"""``report.json``, schema 1: one representation's scores on one task, in files anyone can open.

The json holds means and intervals for people and scripts; the Parquet file beside it holds every
query's values, so that two reports can later be compared query by query. Where the queries have labels, a
second one holds the means of every class.
"""

import difflib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ssl_retrieval.atomic import atomic_path
from ssl_retrieval.errors import UserError
from ssl_retrieval.metrics_classes import CLASS_COLUMN, per_class
from ssl_retrieval.resampling import AUTO, of_report
from ssl_retrieval.statistics import bootstrap_mean
from ssl_retrieval.types import IntArray, Report

SCHEMA = 1
QUERY_COLUMN = "query"
RANKS_COLUMN = "ranks"
GROUP_COLUMN = "group"


def write_report(report: Report, file: Path, resample: str = AUTO) -> None:
    """Write a report as ``report.json`` and its per-query values beside it.

    All files appear whole or not at all. The Parquet files are written first, so that a json never names
    a file that is missing: values per query (columns: ``query``, ``class`` where there are labels, ``group``
    where it is known, ``ranks`` of the relevant items unless they are too many, then one per metric), and,
    where there are labels, means per class (see `metrics_classes.per_class`).

    Args:
        report: What to write.
        file: Path of the json; the others are ``<stem>.per_query.parquet`` and ``<stem>.per_class.parquet``
            in the same folder.
        resample: What its intervals resample, see `StatisticsOptions`.
    """
    per_query_file = file.with_name(f"{file.stem}.per_query.parquet")
    per_class_file = file.with_name(f"{file.stem}.per_class.parquet")
    columns: dict[str, Any] = {QUERY_COLUMN: list(report.query_ids)}
    if report.query_classes:
        columns[CLASS_COLUMN] = list(report.query_classes)
    if report.query_groups is not None:
        columns[GROUP_COLUMN] = report.query_groups
    if report.ranks:
        columns[RANKS_COLUMN] = list(report.ranks)
    tables = {per_query_file: pd.DataFrame(columns | report.per_query)}
    if report.query_classes:
        tables[per_class_file] = per_class(report.per_query, report.query_classes)
    decided = of_report(report, resample)
    content = {
        "schema": SCHEMA,
        "task": report.task,
        "level": report.info.get("level"),
        "representation": report.representation,
        "protocol": report.protocol,
        "metrics": _summarise(report, decided.groups),
        "intervals": {"resampling": decided.words, "remark": decided.note},
        "pooled": report.pooled,
        "per_query": per_query_file.name,
        "per_class": per_class_file.name if report.query_classes else None,
        "costs": report.costs,
        "versions": report.versions,
        "info": report.info,
        "config": report.config,
    }
    text = json.dumps(_plain(content), indent=2, allow_nan=False)
    for parquet_file, table in tables.items():
        with atomic_path(parquet_file) as partial:
            table.to_parquet(partial, index=False)
    with atomic_path(file) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def read_report(file: Path) -> Report:
    """Read a report that :func:`write_report` wrote.

    Args:
        file: Path of the json.

    Returns:
        The report, its values bit by bit as they were written.

    Raises:
        UserError: The file is missing, is no report, has another schema, or the per-query file beside
            it is missing or belongs to another run.
    """
    content = _read_json(file)
    try:
        per_query_name = str(content["per_query"])
        table = _read_per_query(file, per_query_name)
        stored = {name: metric["mean"] for name, metric in content["metrics"].items()}
        pooled = {name: _number(value) for name, value in content.get("pooled", {}).items()}
        report = Report(
            task=str(content["task"]),
            representation=dict(content["representation"]),
            protocol=dict(content["protocol"]),
            query_ids=tuple(table[QUERY_COLUMN].astype(str)),
            per_query={name: table[name].to_numpy(dtype=np.float64) for name in stored if name not in pooled},
            pooled=pooled,
            query_groups=table[GROUP_COLUMN].to_numpy(np.int64) if GROUP_COLUMN in table else None,
            costs=dict(content["costs"]),
            config=dict(content.get("config", {})),
            versions=dict(content["versions"]),
            info=dict(content.get("info", {})),
            ranks=tuple(np.array(row, np.int64) for row in table.get(RANKS_COLUMN, ())),
            query_classes=tuple(table[CLASS_COLUMN].astype(str)) if CLASS_COLUMN in table else (),
        )
        _check_named(report)
    except UserError:
        raise
    except KeyError as error:
        raise UserError(
            f"{file} is not a complete report: {error.args[0]!r} is missing; evaluate again"
        ) from error
    except (TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{file} is not a report of schema {SCHEMA}: {error}; evaluate again") from error
    _check_same_run(report, stored, file, per_query_name)
    return report


def ranks_of_query(report: Report, query: str) -> IntArray:
    """Give the ranks of a query's relevant items.

    Raises:
        UserError: The report has no such query, or keeps no ranks.
    """
    if query not in report.query_ids:
        near = difflib.get_close_matches(query, report.query_ids, n=3, cutoff=0.0)
        raise UserError(
            f"query {query!r} is not in the report: --query takes an id such as {', '.join(near)}"
        )
    if not report.ranks:
        raise UserError("the report keeps no ranks (it is old, or has too many): give --hits instead")
    return report.ranks[report.query_ids.index(query)]


def _summarise(report: Report, groups: IntArray | None) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    for name, values in report.per_query.items():
        interval = bootstrap_mean(values, groups=groups)
        metrics[name] = {
            "mean": interval.mean,
            "ci95": [interval.low, interval.high],
            "num_queries": interval.num_queries,
        }
    for name, value in report.pooled.items():
        metrics[name] = {"mean": value, "ci95": None, "num_queries": len(report.query_ids)}
    return metrics


def _plain(value: Any) -> Any:
    """Turn a nested value into what strict JSON knows: not-a-number and infinity become null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value)


def _check_named(report: Report) -> None:
    """Raise KeyError when a field is missing that every table needs."""
    for mapping, key in (
        (report.representation, "name"),
        (report.representation, "family"),
        (report.representation, "dim"),
        (report.protocol, "hash"),
    ):
        mapping[key]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot read the report {file}: {error.strerror or error}; give the path of a report.json"
        ) from error
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}); give the path of a report.json") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema is None:
        raise UserError(f"{file} is JSON but not a report (no 'schema'); give the path of a report.json")
    if schema != SCHEMA:
        raise UserError(f"{file} has schema {schema!r}, this version reads {SCHEMA}: evaluate again")
    return content


def _read_per_query(file: Path, name: str) -> pd.DataFrame:
    beside = file.parent / name
    if not beside.is_file():
        raise UserError(f"{file} needs {name} in the same folder, but it is missing: move both together")
    try:
        return pd.read_parquet(beside)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{beside} is not a Parquet file ({reason}); evaluate again") from error


def _check_same_run(report: Report, stored: dict[str, float | None], file: Path, per_query_name: str) -> None:
    """Refuse a json and a Parquet file of two runs, as a kill between the two writes could leave."""
    for name, values in report.per_query.items():
        known = values[~np.isnan(values)]
        mean = float(known.mean()) if len(known) else math.nan
        if not np.isclose(mean, _number(stored[name]), rtol=0, atol=1e-9, equal_nan=True):
            raise UserError(
                f"{file} and {per_query_name} belong to different runs (mean of {name} differs); "
                "evaluate again"
            )

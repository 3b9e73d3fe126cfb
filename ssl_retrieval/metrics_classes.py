"""Classes that count alike, however many queries each has."""

from collections.abc import Mapping, Sequence

import pandas as pd

from ssl_retrieval.types import FloatArray

MACRO = "_macro"
"""Ending of a name: the mean over classes of the class means, for any metric with a value per query."""

CLASS_COLUMN = "class"
COUNT_COLUMN = "num_queries"


def per_class(values: Mapping[str, FloatArray], classes: Sequence[str]) -> pd.DataFrame:
    """Average metrics over the queries of each class.

    Args:
        values: Metric name -> float64 [Q]; NaN = the query has no value and is left out.
        classes: Q class names.

    Returns:
        One row per class, sorted by name: ``class``, ``num_queries`` (all of them), then one column per
        metric, NaN where no query of the class has a value.
    """
    queries = pd.DataFrame(dict(values)).groupby(pd.Series(list(classes)))
    table = queries.mean()
    table.insert(0, COUNT_COLUMN, queries.size())
    return table.rename_axis(CLASS_COLUMN).reset_index()


def macro(values: FloatArray, classes: Sequence[str]) -> float:
    """``…_macro``: the mean over classes of the class means; every class counts alike.

    Classes without a value are left out; NaN when none has one. With ``knn@k`` it is the balanced accuracy,
    with ``mAP`` what pytorch-metric-learning calls the average of averages.

    >>> import numpy as np
    >>> macro(np.array([1.0, 1.0, 1.0, 0.0, np.nan]), ["a", "a", "a", "b", "c"])
    0.5
    """
    return float(per_class({"values": values}, classes)["values"].mean())

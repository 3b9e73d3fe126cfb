"""Tables that users write: CSV or Parquet files, read as text."""

from pathlib import Path

import pandas as pd

from ssl_retrieval.errors import UserError


def read_table(key: str, file: Path) -> pd.DataFrame:
    """Read a table; column names lose their outer spaces.

    Args:
        key: The config's key that names the file, for messages.
        file: ``.csv`` or ``.parquet``.

    Raises:
        UserError: The file is missing, is no table, or has another suffix.
    """
    if file.suffix.lower() not in (".csv", ".parquet"):
        raise UserError(f"{key}={str(file)!r}: give a .csv or .parquet file")
    try:
        table = _read(file)
    except FileNotFoundError:
        raise UserError(f"{key}={str(file)!r} does not exist: check the path") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {key}={str(file)!r} as a table: {error}") from None
    table.columns = table.columns.astype(str).str.strip()
    return table


def text(column: pd.Series) -> pd.Series:
    """Give a column's values as text without outer spaces; what is missing is empty."""
    return column.astype(object).where(column.notna(), "").astype(str).str.strip()


def _read(file: Path) -> pd.DataFrame:
    if file.suffix.lower() == ".parquet":
        return pd.read_parquet(file)
    # A class named "NA" must not become an empty one, nor a surplus field shift the columns.
    return pd.read_csv(file, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig")

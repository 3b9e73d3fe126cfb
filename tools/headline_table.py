"""Print the README's short table from a finished run of configs/compare/three_families.yaml; copy the rest.

    python tools/headline_table.py runs/three-families

The whole table goes to docs/three_families.md, the picture to docs/three_families.png.
"""

import argparse
import shutil
from pathlib import Path

import pandas as pd

from ssl_retrieval.report.markdown import markdown_table

DOCS = Path(__file__).parent.parent / "docs"
TITLES = ("new objects (UKBench)", "known kinds (Grocery)", "new kinds (Grocery)")


def short(rows: pd.DataFrame) -> str:
    """Give mAP with its interval: a line per representation, a column per task; bold as in table.md."""
    rows = rows[rows["metric"] == "mAP"]
    tasks = list(dict.fromkeys(rows["task"]))
    lines = [["representation", "family", *TITLES]]
    for name in dict.fromkeys(rows["representation"]):
        of_name = rows[rows["representation"] == name].set_index("task")
        cells = [name, str(of_name["family"].iloc[0])]
        for task in tasks:
            row = of_name.loc[task]
            mean = f"{row['mean']:.3f}"
            mean = f"**{mean}**" if row["in_best_group"] else mean
            cells.append(f"{mean} [{row['low']:.3f}–{row['high']:.3f}]")
        lines.append(cells)
    return markdown_table(lines, num_texts=2)


def main() -> None:
    """Print the table and write both files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="out folder of the finished run")
    run: Path = parser.parse_args().run
    print(short(pd.read_csv(run / "table.csv")))
    shutil.copyfile(run / "chart.png", DOCS / "three_families.png")
    parts = [
        "# Offline, fine-tuned, self-supervised: the whole table",
        "By `configs/compare/three_families.yaml` (its head has all commands) and `tools/headline_table.py`.",
        "![mAP of three families](three_families.png)",
        (run / "table.md").read_text("utf-8").strip(),
    ]
    (DOCS / "three_families.md").write_text("\n\n".join(parts) + "\n", "utf-8")


if __name__ == "__main__":
    main()

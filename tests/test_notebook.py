"""The notebooks run from top to bottom."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def run(name: str, folder: Path) -> tuple[Any, list[Any]]:
    """Execute a notebook from top to bottom; give it with its outputs."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook, [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.mark.slow
def test_notebook_runs(tmp_path: Path) -> None:
    notebook, outputs = run("demo", tmp_path)
    assert len(notebook.cells) == 10
    texts = [output.get("text", "") for output in outputs]
    data = [output.get("data", {}) for output in outputs]
    tables = [shown["text/markdown"] for shown in data if "text/markdown" in shown]
    assert any("queries" in text for text in texts)
    assert any("image/png" in shown for shown in data)
    assert len(tables) == 1
    assert "SimCLR from ImageNet" in tables[0]


@pytest.mark.slow
def test_the_notebook_on_collections_runs(tmp_path: Path) -> None:
    _, outputs = run("collection", tmp_path)
    data = [output.get("data", {}) for output in outputs]
    assert sum("image/png" in shown for shown in data) == 3
    tables = " ".join(shown.get("text/html", "") for shown in data)
    for name in ("ImageNet", "HNSW32", "within-gallery", "noisy"):
        assert name in tables


@pytest.mark.slow
def test_the_notebook_on_adapting_runs(tmp_path: Path) -> None:
    _, outputs = run("adapt_your_photos", tmp_path)
    texts = " ".join(output.get("text", "") for output in outputs)
    assert "Use the adapted network" in texts or "Keep the start" in texts
    assert "local-dir:" in texts
    data = [output.get("data", {}) for output in outputs]
    assert sum("image/png" in shown for shown in data) == 1
    assert any("report.html" in shown.get("text/html", "") for shown in data)


@pytest.mark.parametrize("file", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda file: file.stem)
def test_notebook_is_stored_without_outputs(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)

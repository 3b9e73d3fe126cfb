"""The stages in a few lines, for notebooks: frames and figures come back, files stay in ``out``.

::

    from ssl_retrieval.notebook import Collection
    photos = Collection.embed("photos", out="runs/photos")
    photos.show(photos.search("holiday.jpg", k=10))

A path given for ``data`` is a folder of images whose subfolders are classes; a name given for a model is an
extractor or a timm network. Both may be a mapping with the keys that a yaml would have. ``settings`` are
further keys of the command's config, e.g. ``metrics=["mAP", "uap"]``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd

from ssl_retrieval import config
from ssl_retrieval.adaptation.adapt import adapt
from ssl_retrieval.adaptation.outcome import Outcome
from ssl_retrieval.analyze import AnalyzeConfig
from ssl_retrieval.analyze import analyze as run_analyze
from ssl_retrieval.compare import Comparison
from ssl_retrieval.compare import compare as compare_finished
from ssl_retrieval.embed import EmbedConfig, run_embed
from ssl_retrieval.embedding_files import read
from ssl_retrieval.evaluate import EvaluateConfig
from ssl_retrieval.evaluate import evaluate as run_evaluate
from ssl_retrieval.find import find
from ssl_retrieval.grid import CompareConfig, run_grid
from ssl_retrieval.images import load_image
from ssl_retrieval.indexing import IndexConfig, run_index
from ssl_retrieval.leakage import LeakageConfig
from ssl_retrieval.leakage import leakage as run_leakage
from ssl_retrieval.own_vectors import evaluate_vectors
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.report.analysis_page import Section
from ssl_retrieval.report.chart import Drawing, draw_figure, family_colours
from ssl_retrieval.report.index_table import audit_frame
from ssl_retrieval.report.table import to_frame
from ssl_retrieval.train import PretrainConfig
from ssl_retrieval.train import pretrain as run_pretrain
from ssl_retrieval.types import EmbeddingSet, Report

__all__ = [
    "Collection",
    "Outcome",
    "adapt",
    "analyze",
    "chart",
    "compare",
    "evaluate",
    "evaluate_vectors",
    "indexes",
    "leakage",
    "pretrain",
    "table",
]

Data = str | Path | Mapping[str, Any]
Model = str | Mapping[str, Any]

OFFLINE: Model = {"name": "tf_efficientnet_lite0", "weights": "offline"}
"""ImageNet features that need no download."""


@dataclass(frozen=True, eq=False)
class Collection:
    """An embedded folder of images.

    Attributes:
        folder: Where it is stored; what ``ssl-retrieval search --embeddings`` takes.
        embeddings: Ids and vectors; the vectors are read from disk as they are used.
    """

    folder: Path
    embeddings: EmbeddingSet

    @classmethod
    def embed(
        cls, data: Data, model: Model = OFFLINE, out: str | Path = "runs/collection", **settings: Any
    ) -> "Collection":
        """Embed images, or read what an earlier call left when nothing has changed since.

        Raises:
            UserError: A mistake in the arguments or the data.
        """
        return cls.open(run_embed(_config(EmbedConfig, out, settings, data=_data(data), model=_model(model))))

    @classmethod
    def open(cls, folder: str | Path) -> "Collection":
        """Read an EmbeddingSet folder.

        Raises:
            UserError: There is none, or it is damaged.
        """
        folder = Path(folder).expanduser()
        return cls(folder, read(folder))

    def search(self, query: str | Path, k: int = 10) -> pd.DataFrame:
        """Find the images most like a picture: ``score`` and ``filepath``, best first.

        Raises:
            UserError: The picture cannot be read, or the model is not the one of the collection.
        """
        hits = find(self.folder, Path(query).expanduser(), k)
        return pd.DataFrame({"score": [h.score for h in hits], "filepath": [str(h.file) for h in hits]})

    def show(self, hits: pd.DataFrame, columns: int = 5) -> Drawing:
        """Draw the pictures of a frame with ``filepath`` and ``score``."""
        rows = max(1, -(-len(hits) // columns))
        figure = Drawing(figsize=(2.2 * columns, 2.4 * rows), layout="constrained")
        for place, (file, score) in enumerate(zip(hits["filepath"], hits["score"], strict=True)):
            axes = figure.add_subplot(rows, columns, place + 1)
            axes.imshow(np.asarray(load_image(Path(file), at_least=240)))
            axes.set_title(f"{Path(file).name}\n{score:.3f}", fontsize=8)
            axes.set_axis_off()
        return figure

    def to_frame(self) -> pd.DataFrame:
        """Give ``id``, ``label``, ``filepath`` and ``embedding``, one row per image.

        FiftyOne takes the rows as they are:
        ``dataset.add_samples(fiftyone.Sample(**row) for row in frame.to_dict("records"))``.
        """
        items = pd.read_parquet(self.folder / "items.parquet")
        root = Path(self.embeddings.meta["images"]["root"])
        items["filepath"] = [str(root / identifier) for identifier in items["id"]]
        items["embedding"] = list(np.asarray(self.embeddings.vectors))
        return items

    def to_faiss(self) -> faiss.IndexFlatIP:
        """Give an exact faiss index of the vectors, normalised: its scores are cosines."""
        flat = faiss.IndexFlatIP(self.embeddings.dim)
        flat.add(l2_normalize(np.asarray(self.embeddings.vectors)))
        return flat


def pretrain(recipe: str | Path, data: Data, out: str | Path, **settings: Any) -> Path:
    """Train without labels; the same call goes on where it was stopped.

    Args:
        recipe: A yaml as under ``configs/pretrain``.
        data: The images.
        out: Folder of the run: ``{"name": "checkpoint", "path": out}`` is the trained model.
        settings: Further keys, e.g. ``epochs=2``.

    Raises:
        UserError: A mistake in the arguments or the data.
    """
    given = {**settings, "data": _data(data), "out": str(out)}
    return run_pretrain(config.load(PretrainConfig, Path(recipe).expanduser(), settings=given))


def evaluate(
    data: Data, model: Model = OFFLINE, out: str | Path = "runs/evaluation", **settings: Any
) -> Report:
    """Score one representation on one task; `table` shows it.

    Raises:
        UserError: A mistake in the arguments or the data.
    """
    return run_evaluate(_config(EvaluateConfig, out, settings, data=_data(data), model=_model(model)))


def compare(
    data: Data, models: Mapping[str, Model], out: str | Path = "runs/comparison", **settings: Any
) -> Comparison:
    """Score several representations on one task, with paired tests; `table` and `chart` show it.

    Args:
        data: The task. Several: ``tasks={"fine": {"task": "fine"}, …}`` as in a yaml.
        models: Label -> model.
        out: Where page, tables and reports go.
        settings: Further keys, e.g. ``derived`` or ``fit``.

    Raises:
        UserError: A mistake in the arguments or the data.
    """
    sections = {label: _model(model) for label, model in models.items()}
    return run_grid(_config(CompareConfig, out, settings, data=_data(data), models=sections))


def table(what: Comparison | Report | Iterable[Report]) -> pd.DataFrame:
    """Give every metric with its interval: one row per task, representation and metric."""
    if isinstance(what, Comparison):
        return to_frame(what)
    return to_frame(compare_finished([what] if isinstance(what, Report) else list(what)))


def chart(comparison: Comparison, task: str = "") -> Drawing:
    """Draw the mAP of every representation on a task, by default the first one."""
    shown = next((one for one in comparison.tasks if one.task == task), comparison.tasks[0])
    return draw_figure(shown.ranked, family_colours([entry.family for entry in shown.entries]))


def indexes(
    collection: Collection, names: Sequence[str] = (), out: str | Path = "runs/indexes", **settings: Any
) -> pd.DataFrame:
    """Build approximate indexes of a collection and audit each: recall, mAP, bytes, milliseconds.

    Args:
        collection: The gallery; its labels, where it has some, say what is right.
        names: Factory strings of faiss; empty = a choice of usual ones.
        out: Where tables and the chart go.
        settings: Further keys, e.g. ``gallery_size`` and ``memory_budget_mib``.

    Raises:
        UserError: A mistake in the arguments.
    """
    chosen = {"indexes": list(names)} if names else {}
    asked = _config(IndexConfig, out, settings, embeddings=str(collection.folder), **chosen)
    return audit_frame(run_index(asked).audits)


def leakage(
    data: Data,
    training: Data | None = None,
    model: Model | None = OFFLINE,
    out: str | Path = "runs/leakage",
    **settings: Any,
) -> pd.DataFrame:
    """Count near copies between training, query and gallery images; the pairs are in ``out``.

    Raises:
        UserError: A mistake in the arguments or the data.
    """
    sections = {
        "training": None if training is None else _data(training),
        "model": None if model is None else _model(model),
    }
    given = {name: section for name, section in sections.items() if section is not None}
    return run_leakage(_config(LeakageConfig, out, settings, data=_data(data), **given))


def analyze(
    data: Data, models: Mapping[str, Model], out: str | Path = "runs/analysis", **settings: Any
) -> dict[str, Section]:
    """Look behind the scores: hubs, thresholds, doubtful labels, wins and losses, invariance.

    Returns:
        Name of the question -> its answer, with ``table`` (a frame), ``files`` (frames) and ``chart`` (PNG).

    Raises:
        UserError: A mistake in the arguments or the data.
    """
    sections = {label: _model(model) for label, model in models.items()}
    answers = run_analyze(_config(AnalyzeConfig, out, settings, data=_data(data), models=sections))
    return {answer.name: answer for answer in answers}


def _config(schema: type[Any], out: str | Path, settings: Mapping[str, Any], **given: Any) -> Any:
    return config.load(schema, None, settings={**settings, **given, "out": str(out)})


def _data(data: Data) -> dict[str, Any]:
    return dict(data) if isinstance(data, Mapping) else {"name": "folder", "root": str(data)}


def _model(model: Model) -> dict[str, Any]:
    return dict(model) if isinstance(model, Mapping) else {"name": model}

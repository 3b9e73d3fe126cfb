"""Are test images among the training images? Near copies between and within the lists of a task.

A score on images that were trained on, or whose near copies were, tells how well a network remembers. Near
copies are told by content, by a perceptual hash and by an embedding; people decide what they see on the page.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ssl_retrieval import config, devices, exclusion, planted_copies
from ssl_retrieval.atomic import atomic_path, require_writable
from ssl_retrieval.config import plugin
from ssl_retrieval.console import say
from ssl_retrieval.copy_scopes import Scope, in_words
from ssl_retrieval.data.base import one_of
from ssl_retrieval.embed import EmbedOptions
from ssl_retrieval.errors import UserError
from ssl_retrieval.evaluate import ProtocolOptions, load_task
from ssl_retrieval.fitting import images_of_section
from ssl_retrieval.near_duplicates import Pictures, find_pairs, later_copies
from ssl_retrieval.picture_vectors import embed_pictures
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.report.leakage_page import PairGroup, ShownPair, write_leakage_page
from ssl_retrieval.representation import Representation
from ssl_retrieval.store import Store
from ssl_retrieval.types import ImageSet, Task, VectorArray

EXCLUDE_FILE = "exclude.csv"


@dataclass
class LeakageConfig:
    """The keys of ``ssl-retrieval leakage``.

    Attributes:
        out: Folder for the lists, the page and the embeddings.
        seed: Of the draw of images for planted copies.
        device: ``auto``, ``cpu``, ``cuda``, ….
        data: Dataset section: the task.
        training: Dataset section: the images that something was trained on; none = only the task's own lists
            are searched.
        model: Extractor section; none = copies are told by content and hash alone.
        label: The representation's name in the cache; by default ``model.name``.
        embed: Batch size and workers.
        protocol: See `ProtocolOptions`.
        cache: Folder of embeddings shared between runs; by default ``out/embeddings``.
        max_hamming: Bits of 64 in which the perceptual hashes of copies may differ.
        min_cosine: Least cosine of copies' vectors; what it means depends on the model.
        exclude: ``report``: nothing is excluded; ``queries``: `EXCLUDE_FILE` lists the queries to leave out;
            ``both``: gallery images too.
        exclude_for: Why: a copy in the ``training`` images, or in the ``gallery``, of whose own copies one
            stays.
        num_planted: Images of which copies are made to see how many are found; 0 = none.
        num_shown: Pairs that the page shows at most of each kind.
    """

    out: str = "???"
    seed: int = 0
    device: str = "auto"
    data: Any = plugin("dataset")
    training: Any = plugin("dataset")
    model: Any = plugin("extractor")
    label: str = ""
    embed: EmbedOptions = field(default_factory=EmbedOptions)
    protocol: ProtocolOptions = field(default_factory=ProtocolOptions)
    cache: str = ""
    max_hamming: int = 8
    min_cosine: float = 0.95
    exclude: str = "report"
    exclude_for: str = "training"
    num_planted: int = 100
    num_shown: int = 24


def leakage(cfg: LeakageConfig) -> pd.DataFrame:
    """Search for copies; write ``pairs.csv``, ``pairs.parquet``, ``summary.csv`` and ``report.html``.

    Raises:
        UserError: A mistake in the config or the data.
    """
    _check(cfg)
    out = Path(cfg.out).expanduser()
    require_writable(out)
    task = load_task(cfg.data, cfg.protocol)
    training = None if cfg.training is None else images_of_section(cfg.training, "training")
    cache = Path(cfg.cache).expanduser() if cfg.cache else out / "embeddings"
    store = Store(task, cache, cfg.embed, cfg.data.on_error)
    representation = None
    if cfg.model is not None:
        label = cfg.label or cfg.model.name
        representation = Representation.make(label, cfg.model, devices.pick(cfg.device))
        if getattr(representation.extractor, "only_scores", False):
            raise UserError(
                f"model.name={cfg.model.name!r} gives scores and no vectors: choose another model"
            )
        store.teach(representation)
    scopes = list(_scopes(task, training, partial(_vectors, representation, store), cfg))
    planted = _planted(cfg, task.gallery, representation)
    summary = pd.DataFrame([scope.counts() for scope in scopes])
    sentences = list(in_words(task, scopes))
    listed = _to_exclude(cfg, task, scopes)
    if cfg.exclude != "report":
        exclusion.write_list(listed, out / EXCLUDE_FILE)
        counts = [sum(row[1] == role for row in listed) for role in exclusion.ROLES]
        sentences.append(
            f"{EXCLUDE_FILE} leaves out {counts[0]} queries and {counts[1]} gallery images: "
            f"evaluate with protocol.exclude={out / EXCLUDE_FILE}."
        )
    _write(out, scopes, summary, planted)
    thresholds = f"Hashes of copies differ in at most {cfg.max_hamming} of 64 bits"
    if representation is not None:
        thresholds += (
            f", or the cosine of their {representation.label!r} vectors is at least {cfg.min_cosine}"
        )
    groups = {scope.name: list(_groups(scope, cfg.num_shown)) for scope in scopes}
    title = f"Near copies around {task.name}"
    write_leakage_page(out / "report.html", title, [*sentences, f"{thresholds}."], summary, planted, groups)
    for sentence in sentences:
        say(sentence)
    return summary


def _check(cfg: LeakageConfig) -> None:
    config.require_sections(cfg, "data")
    one_of("exclude", cfg.exclude, ("report", "queries", "both"))
    one_of("exclude_for", cfg.exclude_for, ("training", "gallery"))
    if cfg.exclude != "report" and cfg.exclude_for == "training" and cfg.training is None:
        raise UserError(
            f"exclude={cfg.exclude} for copies in the training images, and none are given: set "
            "training.name=… and training.root=…, or exclude_for=gallery"
        )
    for key in ("num_planted", "num_shown"):
        if getattr(cfg, key) < 0:
            raise UserError(f"{key}={getattr(cfg, key)}: must be 0 or more")


def _vectors(representation: Representation | None, store: Store, images: ImageSet) -> VectorArray | None:
    """Embed a list; zeros for what cannot be read."""
    if representation is None:
        return None
    found = store.vectors(representation, images)
    vectors = np.zeros((len(images), found.dim), np.float32)
    vectors[np.isin(np.array(images.paths), np.array(found.ids))] = l2_normalize(found.vectors)
    return vectors


def _scopes(task: Task, training: ImageSet | None, vectors: Any, cfg: LeakageConfig) -> Iterator[Scope]:
    gallery = Pictures.of(task.gallery, vectors(task.gallery))
    is_one_list = task.queries.paths == task.gallery.paths and task.queries.boxes is None
    queries = gallery if is_one_list else Pictures.of(task.queries, vectors(task.queries))
    lists = []
    if training is not None:
        trained = Pictures.of(training, vectors(training))
        lists += [("training-queries", trained, queries)]
        lists += [] if is_one_list else [("training-gallery", trained, gallery)]
    lists += [] if is_one_list else [("queries-gallery", queries, gallery)]
    lists += [("within-gallery", gallery, gallery)]
    for name, first, second in lists:
        pairs = find_pairs(first, second, cfg.max_hamming, cfg.min_cosine)
        files = set(first.files)
        same = [] if first is second else [i for i, file in enumerate(second.files) if file in files]
        yield Scope(name, first.images, second.images, pairs, np.array(same, np.int64))


def _planted(cfg: LeakageConfig, images: ImageSet, representation: Representation | None) -> pd.DataFrame:
    embed = None
    if representation is not None:
        embed = partial(
            embed_pictures,
            representation,
            image_size=cfg.protocol.image_size,
            precision=cfg.embed.precision,
        )
    return planted_copies.found_shares(
        images, cfg.num_planted, cfg.max_hamming, cfg.min_cosine, embed, cfg.seed
    )


def _to_exclude(cfg: LeakageConfig, task: Task, scopes: list[Scope]) -> list[tuple[str, str, str]]:
    by_name = {scope.name: scope for scope in scopes}
    queries: set[str] = set()
    gallery: set[str] = set()
    if cfg.exclude == "report":
        return []
    if cfg.exclude_for == "training":
        queries = _leaked(by_name["training-queries"])
        gallery = _leaked(by_name.get("training-gallery", by_name["training-queries"]))
    else:
        within = by_name["within-gallery"]
        later = later_copies(within.pairs, len(within.second))
        gallery = {within.second.paths[i] for i in later.tolist()}
        across = by_name.get("queries-gallery")
        if across is None:
            queries = gallery
        else:
            queries = {across.first.paths[i] for i in across.copied("first").tolist()}
    rows = [(task.name, "query", name) for name in task.queries.paths if name in queries]
    if cfg.exclude == "both":
        rows += [(task.name, "gallery", name) for name in task.gallery.paths if name in gallery]
    return rows


def _leaked(scope: Scope) -> set[str]:
    indices = np.union1d(scope.copied("second"), scope.same_files)
    return {scope.second.paths[i] for i in indices.tolist()}


def _write(out: Path, scopes: list[Scope], summary: pd.DataFrame, planted: pd.DataFrame) -> None:
    pairs = pd.concat([scope.named() for scope in scopes], ignore_index=True)
    pairs = pairs[["scope", *(name for name in pairs.columns if name != "scope")]]
    with atomic_path(out / "pairs.parquet") as partial_file:
        pairs.to_parquet(partial_file, index=False)
    for name, table in (("pairs", pairs), ("summary", summary), ("planted", planted)):
        with atomic_path(out / f"{name}.csv") as partial_file:
            table.to_csv(partial_file, index=False)


def _groups(scope: Scope, num_shown: int) -> Iterator[PairGroup]:
    """Cut the pairs by how they were found; of each kind the surest and the most doubtful are shown."""
    for found_by, pairs in scope.pairs.groupby("found_by", sort=True):
        half = num_shown // 2
        rows = (
            pairs
            if len(pairs) <= num_shown
            else pd.concat([pairs[: num_shown - half], pairs[len(pairs) - half :]])
        )
        left, right = (rows[side].to_numpy(np.int64).tolist() for side in ("first", "second"))
        shown = [
            ShownPair(
                files=(scope.first.file(i), scope.second.file(j)),
                names=(scope.first.paths[i], scope.second.paths[j]),
                hamming=hamming,
                mirrored=mirrored,
                cosine=cosine,
            )
            for i, j, hamming, mirrored, cosine in zip(
                *(left, right),
                *(rows[key].tolist() for key in ("hamming", "mirrored", "cosine")),
                strict=True,
            )
        ]
        yield PairGroup(str(found_by), len(pairs), shown)

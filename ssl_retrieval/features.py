"""What a representation makes of a task's images: vectors or scores, with what they cost.

A representation is an extractor (`Representation`) or derived from others (`Derived`): post-processed, fused.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ssl_retrieval import fusion, postprocess, rerank
from ssl_retrieval.errors import UserError
from ssl_retrieval.fitting import FitSet, NothingToFitError
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.recipe import ASYMMETRIC, Derived
from ssl_retrieval.representation import Representation, check_label
from ssl_retrieval.searching import search_of
from ssl_retrieval.similarity import Cosine, Similarity
from ssl_retrieval.store import Store, files_of
from ssl_retrieval.types import ImageSet, IntArray, Task, VectorArray, digest_of

MAX_PAIRS = 20_000
"""Matching pairs that learned whitening sees at most."""


@dataclass(frozen=True, eq=False)
class Features:
    """What one representation made of one task.

    Attributes:
        task: The task without the images that could not be read.
        queries: float32 [Q, D], rows of length 1 or 0; None where there are only scores.
        gallery: float32 [N, D], likewise.
        scores: Where the similarity is not the dot product of the two.
        label: Name in tables.
        family: As the extractor's; of several, the one that learned most; a step that is fitted on labels
            makes it ``fine-tuned``.
        dim: Dimensions per image.
        key: Of the gallery's vectors and of all that was done to them.
        images_per_s: Speed of embedding.
        bytes_per_image: What the gallery takes.
        peak_rss_mib: Largest memory while embedding; NaN where it is not known.
        train_s: Seconds of training; None = not trained by us.
        skipped: (id, reason) of unreadable images.
        without_features: Files of the images whose vector is zero: no keypoint, say.
        to_fit: Gives float32 [M, D] of the images to fit on, for what is derived from this, zeros for those
            that cannot be read; None where there are only scores.
        notes: What was done where data was short.
        fitted: Where it was fitted (`FitSet.to_dict`); None = nothing was.
        rerank_costs: What re-ranking took: ``rerank_ms_per_query``, ``rerank_offline_s`` on the gallery, and
            ``rerank_bytes_per_image``, which are part of ``bytes_per_image``; empty = nothing was re-ranked.
    """

    task: Task
    queries: VectorArray | None
    gallery: VectorArray | None
    scores: Similarity | None
    label: str
    family: str
    dim: int
    key: str
    images_per_s: float
    bytes_per_image: float
    peak_rss_mib: float
    train_s: float | None
    skipped: tuple[tuple[str, str], ...]
    without_features: frozenset[str]
    to_fit: Callable[[], VectorArray] | None
    notes: tuple[str, ...] = ()
    fitted: dict[str, object] | None = None
    rerank_costs: dict[str, float] = field(default_factory=dict)

    @property
    def similarity(self) -> Similarity:
        """Scores of all pairs."""
        if self.scores is not None:
            return self.scores
        assert self.queries is not None
        assert self.gallery is not None
        return Cosine(self.queries, self.gallery)


def checked_labels(models: Iterable[str], recipes: Mapping[str, Derived]) -> list[str]:
    """List the labels of a config's representations, models first; refuse what cannot be made.

    Args:
        models: Labels of extractors.
        recipes: Label -> what is made of those before it.

    Raises:
        UserError: A label is taken or cannot be written, or a recipe is wrong.
    """
    known = list(models)
    for name, recipe in recipes.items():
        if name in known:
            raise UserError(f"derived.{name}: there is a model of that name; give it another")
        recipe.check(name, known)
        known.append(name)
    for name in known:
        check_label(name)
    return known


def extracted(representation: Representation, store: Store) -> Features:
    """Embed a task with an extractor.

    Raises:
        UserError: Unreadable images with ``fail``, nothing to learn from, or no readable image.
    """
    learned_from = store.teach(representation)
    queries = store.vectors(representation, store.task.queries)
    gallery = store.vectors(representation, store.task.gallery)
    kept = store.task.restrict(set(queries.ids), set(gallery.ids))
    extractor = representation.extractor
    has_own = hasattr(extractor, "similarity")
    scores = similarity_of(extractor, queries.vectors, gallery.vectors) if has_own else None
    only_scores = getattr(extractor, "only_scores", False)

    def to_fit() -> VectorArray:
        # It may have been taught for another task since.
        store.teach(representation)
        chosen = store.fit_images().images
        found = store.vectors(representation, chosen)
        vectors = np.zeros((len(chosen), found.dim), np.float32)
        vectors[np.isin(np.array(chosen.paths), np.array(found.ids))] = l2_normalize(found.vectors)
        return vectors

    size = extractor.bytes_per_image(gallery.vectors) if hasattr(extractor, "bytes_per_image") else None
    return Features(
        task=kept,
        queries=None if only_scores else l2_normalize(queries.vectors),
        gallery=None if only_scores else l2_normalize(gallery.vectors),
        scores=scores,
        label=representation.label,
        family=extractor.family,
        dim=extractor.dim,
        key=gallery.key,
        images_per_s=gallery.images_per_s,
        bytes_per_image=4.0 * extractor.dim if size is None else float(size),
        peak_rss_mib=float(gallery.meta.get("peak_rss_mib") or "nan"),
        train_s=getattr(extractor, "train_s", None),
        skipped=tuple(sorted({*queries.skipped, *gallery.skipped})),
        without_features=_without_features(kept, queries.vectors, gallery.vectors),
        to_fit=None if only_scores else to_fit,
        fitted=None if learned_from is None else learned_from.to_dict(),
    )


def similarity_of(extractor: Any, queries: VectorArray, gallery: VectorArray) -> Similarity:
    """Give an extractor's own similarity of some vectors, or their cosine.

    Args:
        extractor: What made them.
        queries: float32 [Q, D], of any length.
        gallery: float32 [N, D], likewise.
    """
    if hasattr(extractor, "similarity"):
        own: Similarity = extractor.similarity(queries, gallery)
        return own
    return Cosine(l2_normalize(queries), l2_normalize(gallery))


def derived(label: str, recipe: Derived, parts: list[Features], store: Store) -> Features:
    """Make a representation out of others that were made of the same task.

    Args:
        label: Its name in tables.
        recipe: What to do.
        parts: What ``recipe.of`` names, in that order.
        store: Of the task.

    Raises:
        NothingToFitError: There are no images to fit on, or none that match where that is needed.
        UserError: The parts were made of different images, or have scores where vectors are needed.
    """
    combined = _combined(label, recipe, parts, store)
    return _reranked(combined, recipe) if recipe.rerank else combined


def _combined(label: str, recipe: Derived, parts: list[Features], store: Store) -> Features:
    first = parts[0]
    for part in parts[1:]:
        if part.task.queries.paths != first.task.queries.paths or (
            part.task.gallery.paths != first.task.gallery.paths
        ):
            raise UserError(
                f"{label!r}: {first.label!r} and {part.label!r} could read different images; repair or "
                "remove those that were skipped"
            )
    weights = recipe.weights or [1.0] * len(parts)
    steps = postprocess.parse(recipe.steps)
    families = [part.family for part in parts]
    if any(step.needs_pairs for step in steps):
        families.append("fine-tuned")
    done = [recipe.fuse, weights, [step.name for step in steps], [part.key for part in parts]]
    base = dataclasses.replace(
        first,
        label=label,
        family=max(families, key=_FAMILIES.index),
        key=digest_of(done),
        images_per_s=_one_after_another([part.images_per_s for part in parts]),
        peak_rss_mib=float(np.max([part.peak_rss_mib for part in parts])),
        train_s=_sum([part.train_s for part in parts]),
        bytes_per_image=sum(part.bytes_per_image for part in parts),
        without_features=frozenset.intersection(*(part.without_features for part in parts)),
        fitted=next((part.fitted for part in parts if part.fitted is not None), None),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        rerank_costs=_summed([part.rerank_costs for part in parts]),
    )
    if recipe.fuses_scores:
        return _fused_scores(base, recipe, parts, weights)
    if not recipe.needs_vectors:
        return base
    for part in parts:
        if part.queries is None:
            raise needs_vectors(label, part.label)
    if recipe.fuse == ASYMMETRIC:
        base = _asymmetric(base, *parts)
    # Each side is made of all parts, or of its own.
    asking, searched = ([first], parts[1:]) if recipe.fuse == ASYMMETRIC else (parts, parts)
    queries = _joined([part.queries for part in asking], weights)
    gallery = _joined([part.gallery for part in searched], weights)
    to_fit = functools.cache(functools.partial(_parts_to_fit, searched, weights))
    if not steps:
        return dataclasses.replace(
            base,
            queries=queries,
            gallery=gallery,
            scores=None,
            dim=gallery.shape[1],
            without_features=_without_features(first.task, queries, gallery),
            to_fit=to_fit,
        )
    chosen = store.fit_images() if recipe.learns else None
    pairs = _pairs(chosen, store) if any(step.needs_pairs for step in steps) else None
    vectors = gallery[:0] if chosen is None else to_fit()
    pipeline = postprocess.fit(steps, vectors, pairs, store.fit.seed)
    queries, gallery = pipeline.apply(queries, "query"), pipeline.apply(gallery, "gallery")
    return dataclasses.replace(
        base,
        queries=l2_normalize(queries),
        gallery=l2_normalize(gallery),
        scores=None,
        dim=gallery.shape[1],
        bytes_per_image=pipeline.bytes_per_image,
        without_features=_without_features(first.task, queries, gallery),
        to_fit=lambda: l2_normalize(pipeline.apply(to_fit(), "query")),
        notes=base.notes + pipeline.notes,
        fitted=base.fitted if chosen is None else chosen.to_dict(),
        key=digest_of([base.key, store.fit.seed, None if chosen is None else store.fit_contents]),
    )


def _reranked(features: Features, recipe: Derived) -> Features:
    """Re-rank what was made; what it is to be fitted on stays as it was."""
    steps = rerank.parse(recipe.rerank)
    found = rerank.apply(steps, search_of(features.task, features.queries, features.gallery, features.scores))
    extra = found.gallery_bytes / len(features.task.gallery)
    costs = {
        "rerank_ms_per_query": 1000 * found.query_s / len(features.task.queries),
        "rerank_offline_s": found.offline_s,
        "rerank_bytes_per_image": extra,
    }
    return dataclasses.replace(
        features,
        queries=found.queries,
        gallery=found.gallery,
        scores=found.scores,
        key=digest_of([features.key, [rerank.name_of(step) for step in steps]]),
        # An augmented vector is no code any more.
        bytes_per_image=(4.0 * features.dim if found.changes_gallery else features.bytes_per_image) + extra,
        to_fit=features.to_fit if found.scores is None else None,
        notes=(*features.notes, *found.notes),
        rerank_costs=_summed([features.rerank_costs, costs]),
    )


def _asymmetric(base: Features, asking: Features, searched: Features) -> Features:
    """Give what it costs to embed queries with one part and to keep the vectors of the other.

    Raises:
        UserError: Their vectors have different dimensions.
    """
    if asking.dim != searched.dim:
        raise UserError(
            f"{base.label!r}: {asking.label!r} has {asking.dim} dimensions and {searched.label!r} has "
            f"{searched.dim}: queries and gallery need one space, as method.space=teacher trains it"
        )
    return dataclasses.replace(
        base, images_per_s=asking.images_per_s, bytes_per_image=searched.bytes_per_image
    )


def _fused_scores(base: Features, recipe: Derived, parts: list[Features], weights: list[float]) -> Features:
    fuse = fusion.ScoreSum if recipe.fuse == "score_sum" else fusion.ReciprocalRank
    return dataclasses.replace(
        base,
        queries=None,
        gallery=None,
        scores=fuse([part.similarity for part in parts], weights),
        dim=sum(part.dim for part in parts),
        to_fit=None,
    )


_FAMILIES = ("hand-crafted", "random", "off-the-shelf", "distilled", "fine-tuned", "self-supervised")
"""From what has learned nothing to what has learned here."""


def _parts_to_fit(parts: list[Features], weights: list[float]) -> VectorArray:
    return _joined([None if part.to_fit is None else part.to_fit() for part in parts], weights)


def _pairs(chosen: FitSet | None, store: Store) -> IntArray:
    """Pair the images to fit on by their labels."""
    assert chosen is not None
    labels = chosen.images.labels
    pairs = None if labels is None else postprocess.matching_pairs(labels, MAX_PAIRS, store.fit.seed)
    if pairs is None or len(pairs) == 0:
        why = "have no labels" if labels is None else "are all of different classes"
        raise NothingToFitError(
            f"learned_whiten needs images that match, and the {len(chosen.images)} images to fit on {why}: "
            "give others as fit.name=… and fit.root=…, or use pca_whiten"
        )
    return pairs


def _joined(parts: list[VectorArray | None], weights: list[float]) -> VectorArray:
    known = [part for part in parts if part is not None]
    assert len(known) == len(parts)
    return known[0] if len(known) == 1 else fusion.concatenate(known, weights)


def needs_vectors(label: str, part: str) -> UserError:
    """Put into one line that a representation is made of one that has no vectors."""
    return UserError(
        f"{label!r}: {part!r} has scores and no vectors, so it can only be fused with others, by "
        "fuse=score_sum or fuse=reciprocal_rank"
    )


def _without_features(task: Task, queries: VectorArray, gallery: VectorArray) -> frozenset[str]:
    return _files_of_zeros(task.queries, queries) | _files_of_zeros(task.gallery, gallery)


def _files_of_zeros(image_set: ImageSet, vectors: VectorArray) -> frozenset[str]:
    files = files_of(image_set)
    return frozenset(files[row] for row in np.flatnonzero(~vectors.any(axis=1)))


def _one_after_another(speeds: list[float]) -> float:
    seconds = sum(1 / speed for speed in speeds)
    return 1 / seconds if seconds else float("nan")


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _summed(costs: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(key for one in costs for key in one)
    return {key: sum(one.get(key, 0.0) for one in costs) for key in names}

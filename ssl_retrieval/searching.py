"""One search, as far as a searcher knows it: what re-ranking steps take and give."""

from dataclasses import dataclass, replace

import numpy as np

from ssl_retrieval.similarity import Cosine, Similarity
from ssl_retrieval.types import ImageSet, IntArray, Task, VectorArray


@dataclass(frozen=True, eq=False)
class Search:
    """One search, as far as a searcher knows it.

    Attributes:
        query_images: Q images, without labels.
        gallery_images: N images, without labels.
        own: Q arrays of no or one gallery index: the query's own photo, which is left out of its neighbours.
        image_size: Short side in pixels to which images are reduced first; None = as stored.
        queries: float32 [Q, D], rows of length 1 or 0; None where there are only scores.
        gallery: float32 [N, D], likewise.
        scores: Where the similarity is not the dot product of the two.
        offline_s: Seconds of re-ranking that a gallery takes before any query comes.
        query_s: Seconds of re-ranking that all queries took.
        gallery_bytes: What re-ranking keeps of the gallery besides its vectors.
        changes_gallery: Whether the gallery's vectors are no longer those that were given.
        notes: What a reader must know.
    """

    query_images: ImageSet
    gallery_images: ImageSet
    own: tuple[IntArray, ...]
    image_size: int | None = None
    queries: VectorArray | None = None
    gallery: VectorArray | None = None
    scores: Similarity | None = None
    offline_s: float = 0.0
    query_s: float = 0.0
    gallery_bytes: float = 0.0
    changes_gallery: bool = False
    notes: tuple[str, ...] = ()

    @property
    def similarity(self) -> Similarity:
        """Scores of all pairs."""
        return self.scores if self.scores is not None else Cosine(*self.vectors)

    @property
    def vectors(self) -> tuple[VectorArray, VectorArray]:
        """The queries' and the gallery's."""
        assert self.queries is not None
        assert self.gallery is not None
        return self.queries, self.gallery

    def after(
        self,
        name: str,
        offline_s: float,
        query_s: float,
        *,
        gallery_bytes: float = 0.0,
        uses_gallery: bool = False,
        **made: object,
    ) -> "Search":
        """Give the search after a step.

        Args:
            name: Of the step.
            offline_s: Seconds that it spent on the gallery.
            query_s: Seconds that it spent on queries.
            gallery_bytes: What it keeps of the gallery.
            uses_gallery: Whether it compared gallery images with each other.
            made: Fields that are new.
        """
        num_own = sum(map(len, self.own))
        note = (
            f"{name}: {num_own} queries are in the gallery, and their own photos took part when gallery "
            "images were compared with each other; a search for new photos does not have them"
        )
        return replace(
            self,
            offline_s=self.offline_s + offline_s,
            query_s=self.query_s + query_s,
            gallery_bytes=self.gallery_bytes + gallery_bytes,
            notes=(*self.notes, note) if uses_gallery and num_own else self.notes,
            **made,  # type: ignore[arg-type]
        )


def search_of(
    task: Task, queries: VectorArray | None, gallery: VectorArray | None, scores: Similarity | None
) -> Search:
    """Take from a task what a searcher knows of it.

    Args:
        task: Its answers and labels stay behind.
        queries: float32 [Q, D], or None.
        gallery: float32 [N, D], or None.
        scores: Where the similarity is not the dot product of the two.
    """
    return Search(
        query_images=_unlabelled(task.queries),
        gallery_images=_unlabelled(task.gallery),
        own=own_places(task),
        image_size=task.protocol.image_size,
        queries=queries,
        gallery=gallery,
        scores=scores,
    )


def own_places(task: Task) -> tuple[IntArray, ...]:
    """Find each query in the gallery by its id: Q arrays of no or one index.

    Where the protocol counts a query's own photo as a result it is an image of the gallery like any other,
    and all arrays are empty.
    """
    nothing = np.empty(0, np.int64)
    if task.protocol.self_match == "counted" or task.queries.root != task.gallery.root:
        return (nothing,) * len(task.queries)
    place = {path: np.array([row], np.int64) for row, path in enumerate(task.gallery.paths)}
    return tuple(place.get(path, nothing) for path in task.queries.paths)


def _unlabelled(images: ImageSet) -> ImageSet:
    return replace(images, labels=None, class_names=())

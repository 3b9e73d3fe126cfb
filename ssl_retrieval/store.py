"""The vectors of a task's images: each is embedded once per extractor, whatever lists it stands in."""

import functools
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ssl_retrieval import learning
from ssl_retrieval.embed import EmbedOptions, embed, identity_of, key_of
from ssl_retrieval.fitting import FitSet, fit_set
from ssl_retrieval.images import contents, none_readable, report_skipped, unreadable
from ssl_retrieval.representation import Representation
from ssl_retrieval.types import EmbeddingSet, ImageSet, Task, digest_of


@dataclass
class FitOptions:
    """Where what must be fitted is fitted (see `fit_set`).

    Attributes:
        images: Images of another set; None = each task's own.
        limit: At most so many.
        on_test: Whether test images may be used.
        seed: Of draws and of what is fitted.
    """

    images: ImageSet | None = None
    limit: int = 5000
    on_test: bool = False
    seed: int = 0


Place = tuple[EmbeddingSet, int | str]
"""Where an image's vector is: a set, and the row in it; or the reason why there is none."""


@dataclass
class Shelf:
    """Images that were embedded in this run, for all tasks that hold them."""

    _places: dict[str, dict[str, Place]] = field(default_factory=dict)

    def of(self, identity: str) -> dict[str, Place]:
        """Give what an extractor of this identity has embedded, by file."""
        return self._places.setdefault(identity, {})

    def add(self, identity: str, image_set: ImageSet, embedded: EmbeddingSet) -> None:
        """Note what became of some images."""
        rows: dict[str, int | str] = {path: row for row, path in enumerate(embedded.ids)}
        rows |= dict(embedded.skipped)
        files = files_of(image_set)
        self.of(identity).update(
            {file: (embedded, rows[path]) for file, path in zip(files, image_set.paths, strict=True)}
        )


@dataclass
class Store:
    """Embeds the images of one task.

    Attributes:
        task: The task.
        cache: Folder of EmbeddingSets; finished ones with the right key are reused.
        options: How to embed.
        on_error: ``skip`` or ``fail`` for unreadable images.
        fit: Where to fit.
        shelf: What was embedded before; several tasks may share one.
    """

    task: Task
    cache: Path
    options: EmbedOptions = field(default_factory=EmbedOptions)
    on_error: str = "skip"
    fit: FitOptions = field(default_factory=FitOptions)
    shelf: Shelf = field(default_factory=Shelf)
    _sets: dict[tuple[str, str], EmbeddingSet] = field(default_factory=dict)

    def fit_images(self) -> FitSet:
        """Give the images to fit on.

        Raises:
            UserError: There are none (see `fit_set`).
        """
        return fit_set(self.task, self.fit.images, self.fit.limit, self.fit.on_test, self.fit.seed)

    @functools.cached_property
    def fit_contents(self) -> str:
        """Hash of the images to fit on (see `images.contents`)."""
        return contents(self.fit_images().images)

    def vectors(self, representation: Representation, image_set: ImageSet) -> EmbeddingSet:
        """Embed some images, or take from the shelf those that were embedded in another list.

        Raises:
            UserError: An unreadable image with ``fail``, or no readable image.
        """
        name = images_name(image_set)
        key = representation.label, name
        if key not in self._sets:
            found = self._embedded(representation, image_set)
            # Another task, which skips them, may have put it on the shelf.
            if self.on_error == "fail" and found.skipped:
                raise unreadable(image_set, *found.skipped[0])
            report_skipped(found.skipped, str(image_set.root))
            self._sets[key] = found
        return self._sets[key]

    def teach(self, representation: Representation) -> FitSet | None:
        """Teach an extractor that learns; give the images it learned from."""
        if not learning.learns(representation):
            return None
        chosen = self.fit_images()
        file = self.learned_file(representation, chosen.images)
        learning.teach(
            representation,
            chosen.images,
            file,
            image_size=self.task.protocol.image_size,
            on_error=self.on_error,
        )
        return chosen

    def folder(self, representation: Representation, image_set: ImageSet) -> Path:
        """Give the folder of some images' vectors; its own for everything that an extractor has learned."""
        learned = f"-{representation.extractor.weights_digest[:8]}" if learning.learns(representation) else ""
        return self.cache / f"{representation.label}-{images_name(image_set)}{learned}"

    def learned_file(self, representation: Representation, image_set: ImageSet) -> Path:
        """Give the file of what an extractor has learned from some images."""
        return self.cache / f"{representation.label}-learned-{images_name(image_set)}.safetensors"

    def _embedded(self, representation: Representation, image_set: ImageSet) -> EmbeddingSet:
        if image_set.boxes is not None:
            return self._new(representation, image_set)
        image_size = self.task.protocol.image_size
        identity = digest_of(identity_of(representation, self.options, image_size))
        known, files = self.shelf.of(identity), files_of(image_set)
        missing = without(image_set, known)
        if len(missing):
            embedded = self._new(representation, missing, may_be_empty=missing is not image_set)
            self.shelf.add(identity, missing, embedded)
            if missing is image_set:
                return embedded
        key = key_of(representation, image_set, self.options, image_size)
        return _assembled(image_set, [known[file] for file in files], key)

    def _new(
        self, representation: Representation, image_set: ImageSet, may_be_empty: bool = False
    ) -> EmbeddingSet:
        return embed(
            representation,
            image_set,
            self.folder(representation, image_set),
            options=self.options,
            image_size=self.task.protocol.image_size,
            on_error=self.on_error,
            may_be_empty=may_be_empty,
        )


def _assembled(image_set: ImageSet, places: list[Place], key: str) -> EmbeddingSet:
    """Put a list together from sets that hold its images; its costs are those of the largest of them."""
    found = [(path, *place) for path, place in zip(image_set.paths, places, strict=True)]
    read = [(path, part, row) for path, part, row in found if isinstance(row, int)]
    skipped = tuple((path, row) for path, _, row in found if isinstance(row, str))
    if not read:
        raise none_readable(image_set, *skipped[0])
    largest = max((part for _, part, _ in read), key=lambda part: len(part.ids))
    return EmbeddingSet(
        ids=tuple(path for path, _, _ in read),
        vectors=np.stack([part.vectors[row] for _, part, row in read]),
        key=key,
        skipped=skipped,
        images_per_s=largest.images_per_s,
        meta=largest.meta,
    )


def without(image_set: ImageSet, known: Container[str]) -> ImageSet:
    """Leave out the images whose files are known; the very same list where none is."""
    new = [index for index, file in enumerate(files_of(image_set)) if file not in known]
    return image_set if len(new) == len(image_set) else image_set.take(np.array(new, np.int64))


def images_name(image_set: ImageSet) -> str:
    """Name an image list in 8 hex digits, the same for all tasks that share it."""
    return digest_of([str(image_set.root), *image_set.to_key()])[:8]


def files_of(image_set: ImageSet) -> list[str]:
    """Give the full path of every image, links in the root's own path resolved."""
    root = image_set.root.resolve()
    return [str(root / path) for path in image_set.paths]

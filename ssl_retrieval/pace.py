"""Says what a comparison is doing and how long it will take, from a trial of every extractor."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ssl_retrieval import images, workers
from ssl_retrieval.console import say
from ssl_retrieval.embedding_files import stored_key
from ssl_retrieval.errors import ImageError, UserError
from ssl_retrieval.learning import learns
from ssl_retrieval.representation import Representation
from ssl_retrieval.store import Store, files_of, without
from ssl_retrieval.types import ImageSet

_TRIAL_IMAGES = 8


@dataclass
class Pace:
    """Seconds that each representation is expected to take, corrected by those that are finished.

    Attributes:
        expected: Label -> seconds; what is derived costs nothing that counts.
        num_all: How many representations there are, derived ones included.
        begun: Labels in the order in which they were begun.
    """

    expected: dict[str, float]
    num_all: int
    begun: list[str] = field(default_factory=list)
    taken: dict[str, float] = field(default_factory=dict)
    _start: float = 0.0

    @classmethod
    def measured(
        cls, models: list[Representation], stores: list[Store], fitted_on: set[str], num_derived: int
    ) -> "Pace":
        """Try every extractor on a few images and count those that it must embed.

        Args:
            models: The extractors.
            stores: One per task.
            fitted_on: Labels of extractors from whose vectors something is fitted.
            num_derived: How many representations are derived from them.
        """
        expected = {}
        for representation in models:
            left = _to_embed(representation, stores, representation.label in fitted_on)
            count = sum(len(image_set) for image_set in left)
            seconds = _seconds_per_image(representation, left[0], stores[0]) if count else 0.0
            expected[representation.label] = count * seconds
        pace = cls(expected, len(models) + num_derived)
        num_images = len({file for store in stores for file in files_of(store.task.gallery)})
        say(
            f"{pace.num_all} representations on {len(stores)} task(s) with {num_images} gallery images; "
            f"embedding takes about {in_words(sum(expected.values()))}"
        )
        return pace

    def announce(self, label: str) -> None:
        """Say what begins, and how long it and all that follows will take."""
        self._start = time.monotonic()
        self.begun.append(label)
        say(f"[{len(self.begun)}/{self.num_all}] {label}: about {in_words(self.left())} to go in all")

    def finished(self, label: str) -> None:
        """Note how long it took."""
        self.taken[label] = time.monotonic() - self._start

    def left(self) -> float:
        """Estimate the seconds that are left.

        What embedding does not explain (scoring, learning, a busy machine) is added to every representation
        that is left, as much as the finished ones took in the median. A factor would not do: of a fast
        extractor embedding is the smallest part.
        """
        embedding = sum(s for label, s in self.expected.items() if label not in self.taken)
        beyond = [taken - self.expected.get(label, 0) for label, taken in self.taken.items()]
        each = max(0.0, float(np.median(beyond))) if beyond else 0.0
        return embedding + each * (self.num_all - len(self.taken))


def in_words(seconds: float) -> str:
    """Say a duration as people do.

    >>> in_words(42), in_words(600), in_words(5000)
    ('42 s', '10 min', '1 h 23 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _to_embed(representation: Representation, stores: list[Store], is_fitted_on: bool) -> list[ImageSet]:
    """List what an extractor has still to learn from and to embed, each image once."""
    left: list[ImageSet] = []
    known: set[str] = set()
    lessons: set[Path] = set()
    for store in stores:
        lists = [store.task.queries, store.task.gallery]
        try:
            lesson = store.fit_images().images if learns(representation) or is_fitted_on else None
        except UserError:
            lesson = None
        if lesson is None and learns(representation):
            continue
        if lesson is not None and is_fitted_on:
            lists.append(lesson)
        if lesson is not None and learns(representation):
            file = store.learned_file(representation, lesson)
            if file not in lessons and not file.is_file():
                left.append(lesson)
            lessons.add(file)
        for image_set in lists:
            missing = image_set
            # A part of an image says nothing about the whole of it.
            if image_set.boxes is None:
                missing = without(image_set, known)
                known |= set(files_of(missing))
            if len(missing) and stored_key(store.folder(representation, missing)) is None:
                left.append(missing)
    return left


def _seconds_per_image(representation: Representation, image_set: ImageSet, store: Store) -> float:
    """Time one batch, decoding included; the first pass, which is slower, does not count.

    An extractor that has yet to learn cannot embed: its material takes about as long.
    """
    files, extractor = _some_readable(image_set), representation.extractor
    prepare = extractor.material if learns(representation) else extractor.preprocess
    image_size, runtime = store.task.protocol.image_size, representation.runtime(store.options.precision)
    seconds = 0.0
    for _ in range(2):
        start = time.monotonic()
        with torch.no_grad():
            prepared = [prepare(images.shrink(images.load_image(file), image_size)) for file in files]
        middle = time.monotonic()
        if not learns(representation):
            representation.embed_batch(torch.stack(prepared), runtime).cpu()
        # Images are prepared on all cores, which the network has for itself afterwards.
        seconds = (middle - start) / workers.usable_cores() + time.monotonic() - middle
    return seconds / len(files)


def _some_readable(image_set: ImageSet) -> list[Path]:
    """Find some images from everywhere in the list that can be read, at least one.

    Raises:
        UserError: None of all can be read.
    """
    spread = np.linspace(0, len(image_set) - 1, min(_TRIAL_IMAGES, len(image_set))).astype(int).tolist()
    files: list[Path] = []
    first_reason = ""
    for tried, number in enumerate([*spread, *(i for i in range(len(image_set)) if i not in spread)]):
        if files and tried >= len(spread):
            break
        try:
            images.load_image(image_set.file(number))
            files.append(image_set.file(number))
        except ImageError as error:
            first_reason = first_reason or str(error)
    if not files:
        raise images.none_readable(image_set, image_set.paths[0], first_reason)
    return files

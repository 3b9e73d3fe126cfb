"""The batches of a run: this process's share of each step, and labels where the method gets them."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

from torch import Tensor

from ssl_retrieval import distributed
from ssl_retrieval.augment import Output
from ssl_retrieval.feed import Feed
from ssl_retrieval.sampler import Sampler
from ssl_retrieval.train_config import PretrainConfig
from ssl_retrieval.train_setup import AnySampler

Requests = Callable[[], Iterator[tuple[int, Tensor]]]
"""Gives, each time anew, (step, int64 [B] image numbers), one after the other."""


@dataclass(frozen=True)
class Batches:
    """Asks the feed for what steps need.

    Attributes:
        cfg: The run's settled config.
        feed: Gives views.
        sampler: Says which images make a step.
        share: Images of a process and part of a batch.
        labels: int64 [N]; None for methods that learn without.
        begin: The step that the sampler counts from.
    """

    cfg: PretrainConfig
    feed: Feed
    sampler: AnySampler
    share: int
    labels: Tensor | None
    begin: int = 0

    def of_steps(self, first: int, last: int, output: Output) -> Generator[list[Tensor], None, None]:
        """Make what this process needs for some steps: a list per part of a step's batch.

        Args:
            first: The first step.
            last: The one after the last.
            output: What views are like.
        """

        def requests() -> Iterator[tuple[int, Tensor]]:
            for step in range(first, last):
                for part in range(self.cfg.accumulate):
                    yield step, self.numbers(step, part)

        return self._made(requests, output)

    def of_numbers(self, numbers: Tensor, output: Output) -> list[Tensor]:
        """Make views of some images: int64 [B]."""
        with closing(self._made(lambda: iter([(0, numbers)]), output)) as made:
            return next(made)

    def first_pass(self, output: Output) -> Generator[list[Tensor], None, None]:
        """Go through the images once, in a plain shuffle that is the same in every process."""
        num_images = len(self.feed.source.paths)
        plain = Sampler(num_images, min(self.share, num_images), self.cfg.seed)
        return self._made(
            lambda: ((step, plain.batch(step)) for step in range(plain.steps_per_epoch)), output
        )

    def numbers(self, step: int, part: int = 0) -> Tensor:
        """Say which images this process takes in a part of a step."""
        first = (distributed.rank() * self.cfg.accumulate + part) * self.share
        return self.whole(step)[first : first + self.share]

    def whole(self, step: int) -> Tensor:
        """Say which images all processes together take in a step: int64 [batch_size]."""
        return self.sampler.batch(step - self.begin)

    def _made(self, requests: Requests, output: Output) -> Generator[list[Tensor], None, None]:
        # The feed reads its requests ahead, so labels go through a second list of the same.
        with closing(self.feed.batches(requests(), output)) as made:
            for views, (_, numbers) in zip(made, requests(), strict=True):
                yield views if self.labels is None else [*views, self._sent(self.labels[numbers])]

    def _sent(self, labels: Tensor) -> Tensor:
        if self.feed.device.type == "cuda":
            labels = labels.pin_memory()
        return labels.to(self.feed.device, non_blocking=True)

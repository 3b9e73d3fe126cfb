"""Rounds of a run: a look at all training images, and what is learned from until the next one."""

import dataclasses
from contextlib import closing

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as nnf

from ssl_retrieval import backbones, distributed
from ssl_retrieval.augment import Augment, Output, View
from ssl_retrieval.console import say
from ssl_retrieval.defaults import given
from ssl_retrieval.errors import UserError
from ssl_retrieval.evaluation_mode import as_in_search
from ssl_retrieval.feed import Feed
from ssl_retrieval.methods.base import BaseMethod
from ssl_retrieval.network_input import InputSpec
from ssl_retrieval.rounds import Round, Seen
from ssl_retrieval.run_state import RunState
from ssl_retrieval.train_batches import Batches
from ssl_retrieval.train_config import PretrainConfig
from ssl_retrieval.train_setup import AnySampler, sampler_of_round
from ssl_retrieval.types import VectorArray

CHUNK = 128
"""Images per forward pass; each is one process's, so that their number changes no vector."""

PLAIN = Augment(crop_min=1.0, flip=0.0, jitter=0.0, grayscale=0.0, interpolation="bicubic")
"""The whole image, or its middle where it is longer than 4 : 3."""


class Rounds:
    """Begins a round when it is time to, and gives its batches."""

    def __init__(
        self,
        cfg: PretrainConfig,
        method: BaseMethod,
        optimizer: torch.optim.Optimizer,
        state: RunState,
        spec: InputSpec,
        steps_per_epoch: int,
    ) -> None:
        """Take notice of what a round changes.

        Args:
            cfg: The run's settled config.
            method: On its device; its signal is renewed.
            optimizer: Over its parameters.
            state: The run's; holds the round.
            spec: The network's input.
            steps_per_epoch: The unit of ``renew_every``.
        """
        self.cfg, self.method, self.optimizer, self.state, self.spec = cfg, method, optimizer, state, spec
        self.steps = max(1, round(given(cfg.renew_every) * steps_per_epoch))

    def end(self) -> int:
        """Give the step before which the next round begins."""
        return (self.state.round_number + 1) * self.steps

    def of(self, batches: Batches) -> Batches:
        """Give the batches of the round that the run is in, which begins now if it is time to.

        Args:
            batches: Of the round before, or of none.
        """
        number = self.state.step // self.steps
        if number != self.state.round_number:
            return self._begin(number, batches)
        if batches.labels is not None:
            return batches
        found = self.state.round
        assert found is not None
        return self._batches(batches, found, sampler_of_round(self.cfg, found, number))

    def _begin(self, number: int, batches: Batches) -> Batches:
        vectors, last = embed_all(self.method, batches.feed, self.spec), self.state.round
        say(f"step {self.state.step}: round {number}")
        found = None
        if distributed.rank() == 0:
            if not np.isfinite(vectors).all():
                raise UserError(
                    f"embeddings are not finite (NaN or infinity) at step {self.state.step}: try a lower "
                    "optimizer.lr, optimizer.clip or precision=fp32"
                )
            source = batches.feed.source
            left_out = tuple(path for path, _ in source.skipped)
            found = self.method.renew(Seen(vectors, source.paths, left_out, self.cfg.seed, number, last))
        found = distributed.from_first(found)
        assert found is not None
        try:
            sampler = sampler_of_round(self.cfg, found, number)
        except UserError as error:
            if last is None:
                raise
            # To lose a night's run for one poor round would help nobody.
            say(f"  {error}. What the last round found stays")
            self.state.round_number = number
            return self._batches(batches, last, sampler_of_round(self.cfg, last, number))
        for parameter in self.method.begin_round(found):
            self.optimizer.state.pop(parameter, None)
        found = dataclasses.replace(found, centres=None)
        self.state.round, self.state.round_number = found, number
        return self._batches(batches, found, sampler)

    def _batches(self, batches: Batches, found: Round, sampler: AnySampler) -> Batches:
        # Tuples go on where the round before stopped: most rounds are shorter than a pass over all pairs.
        begin = self.state.round_number * self.steps if found.tuples is None else 0
        return dataclasses.replace(batches, sampler=sampler, labels=found.labels, begin=begin)


def embed_all(method: BaseMethod, feed: Feed, spec: InputSpec) -> VectorArray:
    """Embed all training images as they are searched, without augmentation; the method stays as it was.

    Several processes share the work.

    Args:
        method: On the feed's device.
        feed: Gives the images.
        spec: The network's input.

    Returns:
        float32 [N, D], of length 1, in every process the same.
    """
    encoder, head = method.networks()[method.kept], method.embedding_head()
    embed = backbones.own_pooling if head is None else head
    world = distributed.world_size()
    chunks = torch.arange(len(feed.source.paths)).split(CHUNK)
    own = chunks[distributed.rank() :: world]
    plain = dataclasses.replace(feed, views=[View(PLAIN, spec.size)])
    rows: list[Tensor] = []
    output = Output(spec.mean, spec.std, memory_format=torch.channels_last)
    with (
        as_in_search(encoder, feed.device),
        closing(plain.batches(((0, numbers) for numbers in own), output)) as made,
    ):
        for turn in range(-(-len(chunks) // world)):
            found = None
            if turn < len(own):
                found = nnf.normalize(embed(encoder, next(made)[0]).float(), dim=1).cpu()
            rows += [part for part in distributed.from_all(found) if part is not None]
    return torch.cat(rows).numpy()

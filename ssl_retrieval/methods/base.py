"""What every method gives to the training loop."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ssl_retrieval import backbones, ema
from ssl_retrieval.augment import Noise, View
from ssl_retrieval.embedding_head import EmbeddingHead
from ssl_retrieval.errors import UserError
from ssl_retrieval.rounds import Round, Seen, Signal


@dataclass(frozen=True)
class StepOutput:
    """The result of one step.

    Attributes:
        loss: float32 scalar, with gradient. In a distributed run, the mean of all processes' losses is
            the loss of the whole batch.
        logs: Name -> scalar tensor without gradient.
    """

    loss: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


class BaseMethod(nn.Module):
    """A training objective around a backbone; logs nothing, saves nothing, knows no loader.

    Everything that changes from step to step is a parameter or a buffer, so that the state dict is all
    that a resumed run needs. Random numbers come from the views (`Noise`), never from a generator.

    Attributes:
        encoder: The network that the optimizer trains (the student).
        kept: Which of `networks` is exported unless the config says otherwise.
        fixed_lr: Prefixes of parameter names whose learning rate stays at its peak.
        advice: What to try when embeddings collapse, in words.
        needs_labels: Whether `step` gets labels, int64 [B], behind the views; whose, `signal` says.
        family: What its networks are called in tables, unless `signal` says otherwise.
    """

    encoder: nn.Module
    kept: str = "student"
    needs_labels: bool = False
    family: str = "self-supervised"
    fixed_lr: tuple[str, ...] = ()
    advice: str = "a lower optimizer.lr or a larger batch_size"

    @classmethod
    def signal(cls, cfg: Any) -> Signal:
        """Say where labels come from: by default from the data, for a method that needs some.

        The labels of data are taken away before anything of a method without ``given`` can see them.

        Args:
            cfg: The method's config.
        """
        return Signal(given=cls.needs_labels, renewed=False, family=cls.family)

    def views(self, image_size: int) -> Sequence[View | Noise]:
        """Say which views of a batch the objective needs."""
        raise NotImplementedError

    def step(self, views: list[Tensor], progress: float) -> StepOutput:
        """Compute the loss.

        Args:
            views: float [B, 3, S, S] per `View`, float [B, num] in [0, 1) per `Noise`, as ordered by
                `views`; with `needs_labels` int64 [B] last.
            progress: Share of the training done, in [0, 1]; drives every schedule.
        """
        raise NotImplementedError

    def begin(self, batches: Iterator[list[Tensor]]) -> None:
        """Look at training images before the first step; by default nothing is looked at.

        Args:
            batches: What `step` would get, of images in the order of the first pass; made as it is taken.
        """

    def renew(self, seen: Seen) -> Round:
        """Make what is learned from until the next round; for methods whose `signal` is renewed.

        It is asked for before the first step and after every ``renew_every`` epochs, in the first of several
        processes alone, and changes nothing of the method. The same ``seen`` must give the same round.

        Args:
            seen: What the network makes of the training images.

        Raises:
            UserError: The images do not allow for it.
        """
        raise NotImplementedError

    def begin_round(self, found: Round) -> list[nn.Parameter]:
        """Take up a new round in every process: forget what belongs to the old one.

        Args:
            found: From `renew`.

        Returns:
            Parameters that were made anew, for which the optimizer begins anew too; by default none.
        """
        return []

    def embedding_head(self) -> EmbeddingHead | None:
        """Give what turns the encoder's map into the vector to search with; None = the encoder's own pooling.

        It is exported with the encoder.
        """
        return None

    def lr_factors(self) -> dict[str, float]:
        """Give prefixes of parameter names with the factors on their learning rates; by default none."""
        return {}

    def forward(self, views: list[Tensor], progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Call `step` in the form that ``DistributedDataParallel`` passes through."""
        output = self.step(views, progress)
        return output.loss, output.logs

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Give (teacher, student) modules whose weights are averaged by `after_step`; none by default."""
        return []

    def momentum(self, progress: float) -> float:
        """Give the share of the teacher's own weights that an update keeps; for methods with `pairs`."""
        raise NotImplementedError

    def networks(self) -> dict[str, nn.Module]:
        """Give the networks that may be exported: ``student``, and ``teacher`` where there is one."""
        found = {"student": self.encoder}
        if "teacher" in self._modules:
            found["teacher"] = self.get_submodule("teacher")
        return found

    def projectors(self) -> dict[str, nn.Module]:
        """Give, by network, what training puts on its pooled vector and the export leaves out; often none.

        Each takes float [B, C], what the network itself pools. By convention the student's is called
        ``projector`` or ``head``, and the teacher's is its average.
        """
        own = self._modules.get("projector") or self._modules.get("head")
        if own is None or isinstance(own, EmbeddingHead):
            return {}
        averages = [teacher for teacher, student in self.pairs() if student is own]
        return {"student": own} | ({"teacher": averages[0]} if averages else {})

    def keep(self, network: str) -> None:
        """Choose which of `networks` is exported.

        Raises:
            UserError: Neither ``student`` nor ``teacher``.
        """
        if network not in ("student", "teacher"):
            raise UserError(f"method.export={network!r}: one of student, teacher")
        self.kept = network

    def set_mode(self, batchnorm: str) -> None:
        """Put everything into training mode.

        Args:
            batchnorm: ``train``, or ``eval`` to keep the encoder's running statistics as they are.
        """
        self.train()
        backbones.train_mode(self.encoder, batchnorm)
        for teacher, student in self.pairs():
            ema.mirror_mode(teacher, student)

    def before_update(self, progress: float) -> None:
        """Change gradients after clipping, right before the optimizer's step; nothing by default."""

    def after_step(self, progress: float) -> None:
        """Move the teachers towards their students, after the optimizer's step.

        Args:
            progress: As given to `step`: the authors' codes count steps from 0 here too, so that the first
                update takes the first momentum.
        """
        for teacher, student in self.pairs():
            ema.update(teacher, student, self.momentum(progress))

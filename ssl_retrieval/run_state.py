"""The state of a run on disk: all that a resumed process needs to go on to the last bit."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssl_retrieval.atomic import atomic_path
from ssl_retrieval.errors import UserError
from ssl_retrieval.rounds import Round
from ssl_retrieval.run_folder import STATE


class RunState:
    """Where a run stands.

    Attributes:
        step: Steps done.
        seconds: Training time so far.
        scores: What the monitor saw last.
        best: The monitor's best value and its step.
        monitor: What the monitor remembers.
        passes_since_best: Passes of the monitor since its best value.
        round: What is learned from in this round, for methods that make that themselves.
        round_number: Counted from 0.
        start: Digest of the weights that anchors hold on to; empty = there are none.
    """

    def __init__(self, out: Path, images: str, job: str) -> None:
        """Begin at step 0.

        Args:
            out: The run's folder.
            images: Fingerprint of the training images.
            job: Method and backbone in words; a state of another job is refused.
        """
        self.file, self.images, self.job = out / STATE, images, job
        self.step, self.seconds = 0, 0.0
        self.scores: dict[str, float] = {}
        self.best: tuple[float, int] | None = None
        self.monitor: dict[str, Any] = {}
        self.passes_since_best = 0
        self.round: Round | None = None
        self.round_number = -1
        self.start = ""

    def save(self, method: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        """Write everything atomically; what was there stays when the disk is full."""
        state = {
            "method": method.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "scores": self.scores,
            "best": self.best,
            "monitor": self.monitor,
            "passes_since_best": self.passes_since_best,
            "round": self._round(),
            "images": self.images,
            "job": self.job,
            "start": self.start,
        }
        with atomic_path(self.file) as partial:
            torch.save(state, partial)

    def resume(
        self,
        method: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        device: torch.device,
    ) -> None:
        """Read what `save` wrote, if anything.

        Raises:
            UserError: The state is damaged, or of another job, or of other images.
        """
        if not self.file.is_file():
            return
        state = read(self.file, device)
        if state.get("job") != self.job:
            raise UserError(f"{self.file} is of {state.get('job')}, not of {self.job}: use another out")
        if state["images"] != self.images:
            raise UserError(
                f"{self.file.parent}: the run began with other images than those found now: "
                "use another out, or bring the old images back"
            )
        # The start is read anew from where it came; states of earlier versions knew none.
        if state.get("start", "") != self.start:
            raise UserError(
                f"{self.file.parent}: model.weights are no longer those that the run began with: bring them "
                "back, or use another out"
            )
        try:
            method.load_state_dict(state["method"])
            optimizer.load_state_dict(state["optimizer"])
            scaler.load_state_dict(state["scaler"])
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
            self.scores, self.monitor = state["scores"], state["monitor"]
            # States of earlier versions knew no early end.
            self.passes_since_best = int(state.get("passes_since_best", 0))
            self.best = None if state["best"] is None else tuple(state["best"])
            if state.get("round") is not None:
                self._take_round(state["round"])
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{self.file} does not fit this run's settings: use another out") from error

    def _round(self) -> dict[str, Any] | None:
        if self.round is None:
            return None
        return {"number": self.round_number, "labels": self.round.labels, "tuples": self.round.tuples}

    def _take_round(self, stored: dict[str, Any]) -> None:
        labels, tuples = stored["labels"].cpu(), stored["tuples"]
        self.round = Round(labels, None if tuples is None else tuples.cpu())
        self.round_number = int(stored["number"])


def read(file: Path, device: torch.device) -> dict[str, Any]:
    """Read a state without unpickling anything but tensors and plain values.

    Raises:
        UserError: It is damaged.
    """
    damaged = f"{file} is damaged: remove it to begin anew, or use another out"
    try:
        state: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
    except Exception as error:  # damaged bytes raise nearly any type
        raise UserError(damaged) from error
    if not isinstance(state, dict):
        raise UserError(damaged)
    return state

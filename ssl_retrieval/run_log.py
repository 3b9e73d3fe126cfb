"""What a training run writes down: progress bar, ``metrics.jsonl``, ``monitor.jsonl``, TensorBoard events."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

from rich.progress import TextColumn
from torch.utils.tensorboard import SummaryWriter

from ssl_retrieval.atomic import atomic_path
from ssl_retrieval.console import console, progress_bar, say


class RunLog:
    """Progress bar, ``metrics.jsonl``, ``monitor.jsonl`` and TensorBoard events."""

    def __init__(
        self, out: Path, step: int, total: int, steps_per_epoch: int, batch_size: int, writes: bool = True
    ) -> None:
        """Open the run's log at ``step``; lines that a killed process wrote beyond it are dropped.

        Args:
            out: The run's folder.
            step: Steps done.
            total: Steps in all.
            steps_per_epoch: For the column ``epoch``.
            batch_size: For images per second.
            writes: False in all but the first process: they leave no trace.
        """
        self.metrics, self.monitor = out / "metrics.jsonl", out / "monitor.jsonl"
        # TensorBoard hides what another process wrote at or after this step.
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1) if writes else None
        if writes:
            for file in (self.metrics, self.monitor):
                kept = [line for line in _lines(file) if step > 0 and _step_of(line) <= step]
                with atomic_path(file) as partial:
                    partial.write_text("".join(kept))
        self.bar = progress_bar(TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:.0f} images/s"))
        self.task = self.bar.add_task("train", total=total, completed=step, loss=float("nan"), rate=0.0)
        self.steps_per_epoch, self.batch_size = steps_per_epoch, batch_size
        self.begin, self.first = time.monotonic(), step

    def __enter__(self) -> "RunLog":
        """Show the bar."""
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Take the bar away and close the files."""
        self.bar.stop()
        if self.board:
            self.board.close()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Store one line of metrics."""
        self._store(self.metrics, "train", step, values | {"images_per_s": round(self.rate(step), 1)})

    def watch(self, step: int, values: dict[str, float], key: str) -> None:
        """Store what the monitor saw and, where there is no terminal, print its ``key`` value."""
        self._store(self.monitor, "monitor", step, values)
        if not console.is_terminal:
            say(f"step {step}: {key} {values[key]:.3f}, effective rank {values['effective_rank']:.1f}")

    def _store(self, file: Path, group: str, step: int, values: dict[str, float]) -> None:
        if self.board is None:
            return
        row = {"step": step, "epoch": step / self.steps_per_epoch} | values
        with file.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        for name, value in values.items():
            self.board.add_scalar(f"{group}/{name}", value, step)

    def advance(self, step: int, loss: float) -> None:
        """Move the bar; where there is no terminal, print a line per epoch."""
        self.bar.update(self.task, completed=step, loss=loss, rate=self.rate(step))
        if not console.is_terminal and step % self.steps_per_epoch == 0:
            say(f"epoch {step // self.steps_per_epoch}: loss {loss:.3f}, {self.rate(step):.0f} images/s")

    def rate(self, step: int) -> float:
        """Give images per second since this process began to train."""
        return (step - self.first) * self.batch_size / max(time.monotonic() - self.begin, 1e-9)


def _step_of(line: str) -> float:
    """Read a line's step; a broken line is of no step that is kept."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _lines(file: Path) -> Iterator[str]:
    if file.is_file():
        with file.open() as stream:
            # A killed process can leave half a line at the end.
            yield from (line for line in stream if line.endswith("\n"))

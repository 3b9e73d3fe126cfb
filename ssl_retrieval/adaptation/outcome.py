"""What an adaptation ends with, as a file that programs read: ``verdict.json``."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ssl_retrieval.adaptation.trial import Trial
from ssl_retrieval.atomic import atomic_path
from ssl_retrieval.run_folder import read_json

VERDICT = "verdict.json"
MODEL = "model.safetensors"
EXPORTED = "timm"
EMBEDDINGS = "embeddings"
PAGE = "report.html"

START = "the start"


@dataclass(frozen=True)
class Tried:
    """A candidate in the table.

    Attributes:
        name: What was trained.
        steps: Steps made.
        steps_meant: Steps planned.
        seconds: Training and judging.
        score: What the rule compared, adapted minus start; None where it refused the candidate before.
        setting: All values of the setting.
        signals: Label-free signals, see `signals.signals`; None for what is no number.
    """

    name: str
    steps: int
    steps_meant: int
    seconds: float
    score: float | None
    setting: dict[str, Any]
    signals: dict[str, float | None]

    @classmethod
    def of(cls, trial: Trial, score: float, signals: dict[str, float]) -> "Tried":
        """Put together what is known of a candidate."""
        numbers = {name: _number(value) for name, value in signals.items()}
        setting = asdict(trial.setting)
        return cls(
            trial.name, trial.steps, trial.setting.steps, trial.total_s, _number(score), setting, numbers
        )


@dataclass(frozen=True)
class Outcome:
    """The verdict on an adaptation, and where its results lie.

    Attributes:
        folder: Absolute path of the folder of all results.
        photos: Absolute path of the photos.
        goal: What is searched for: ``similar`` or ``copies``.
        chosen: Name of the candidate that is used; None = the start is kept.
        reason: Why, in plain words.
        start: timm name of the start.
        weights: Its weights.
        tried: The candidates.
        notes: What was found in the folder, what was left out and what was cut short, a sentence each.
        skipped: (id, reason) of photos that cannot be read.
        is_embedded: Whether all photos are embedded and can be searched.
        image_size: Side of the network's input in pixels.
        seed: Of everything.
        minutes: Time that was given.
        seconds: Time that was taken.
        versions: Package versions.
    """

    folder: str
    photos: str
    goal: str
    chosen: str | None
    reason: str
    start: str
    weights: str
    tried: tuple[Tried, ...]
    notes: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    is_embedded: bool
    image_size: int
    seed: int
    minutes: float
    seconds: float
    versions: dict[str, str]

    @property
    def headline(self) -> str:
        """The verdict in a few words."""
        return "Use the adapted network" if self.chosen else "Keep the start"

    @property
    def model(self) -> Path:
        """The network to use: a checkpoint with timm's names."""
        return Path(self.folder) / MODEL

    @property
    def extractor(self) -> dict[str, Any]:
        """The network as a model section of a config."""
        return {"name": "checkpoint", "path": str(self.model)}

    @property
    def embeddings(self) -> Path:
        """The photos' vectors, where they were embedded."""
        return Path(self.folder) / EMBEDDINGS

    @property
    def page(self) -> Path:
        """The page to read."""
        return Path(self.folder) / PAGE

    @property
    def search_command(self) -> str:
        """The command that searches the photos."""
        return f"ssl-retrieval search --embeddings {_quoted(self.embeddings)} --query PICTURE.jpg"

    @property
    def embed_command(self) -> str:
        """The command that embeds the photos."""
        return (
            f"ssl-retrieval embed configs/embed/folder.yaml {_quoted(f'data.root={self.photos}')} "
            f"model.name=checkpoint {_quoted(f'model.path={self.model}')} {_quoted(f'out={self.embeddings}')}"
        )

    @property
    def code(self) -> str:
        """The lines of Python that load the network without this package."""
        return "\n".join(
            [
                "import timm",
                f'model = timm.create_model("local-dir:{Path(self.folder) / EXPORTED}", pretrained=True, '
                "num_classes=0).eval()",
                "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
            ]
        )

    def table(self) -> pd.DataFrame:
        """Give the candidates, one row each."""
        rows = [
            {
                "candidate": one.name,
                "steps": one.steps,
                "seconds": round(one.seconds),
                "score": math.nan if one.score is None else one.score,
                "used": one.name == self.chosen,
            }
            for one in self.tried
        ]
        return pd.DataFrame(rows, columns=["candidate", "steps", "seconds", "score", "used"])

    def write(self) -> None:
        """Write ``verdict.json``, the last of all files: a folder that has it is finished."""
        with atomic_path(Path(self.folder) / VERDICT) as partial:
            partial.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False), "utf-8")


def read(folder: Path) -> Outcome | None:
    """Read the verdict of a finished folder; None where it is not finished.

    Raises:
        UserError: The file is damaged.
    """
    stored = read_json(folder / VERDICT)
    if stored is None:
        return None
    stored["tried"] = tuple(Tried(**one) for one in stored["tried"])
    stored["notes"] = tuple(stored["notes"])
    stored["skipped"] = tuple((path, reason) for path, reason in stored["skipped"])
    return Outcome(**stored)


def _number(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None


def _quoted(value: object) -> str:
    text = str(value)
    return text if not set(text) & set(" '\"$&()[]{};*?<>|`\\#!") else "'" + text.replace("'", "'\\''") + "'"

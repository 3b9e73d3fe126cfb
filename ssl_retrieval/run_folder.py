"""What stands in a run's folder besides weights: whose it is, and what was chosen at its start."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

from ssl_retrieval import config, locking
from ssl_retrieval.atomic import atomic_path
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import Choices

STATE = "state.pt"
CHECKPOINT = "checkpoint.safetensors"
BEST = "best.safetensors"
CONFIG = "config.yaml"
CHOICES = "choices.json"
RUNTIME = "runtime.json"
IMAGES = "images.npy"
SOURCE = "source.json"
MONITOR = "monitor.jsonl"

_MAY_CHANGE = {"out", "device", "save_every_s", "log_every", "num_workers"}


def lock(out: Path) -> AbstractContextManager[None]:
    """Keep other processes out of the folder while the returned context is open.

    Raises:
        UserError: Another process holds it.
    """
    refusal = f"{out}: another process is training here: stop it, or use another out"
    return locking.hold(out / ".lock", refusal)


def claim(out: Path, cfg: Any) -> None:
    """Store the config in the run's folder; refuse to go on with another one.

    A run that never came to save anything claims nothing: what stopped it may be the config's mistake.

    Raises:
        UserError: The folder holds a run with other values.
    """
    file, has_state = out / CONFIG, (out / STATE).is_file()
    if has_state and not file.is_file():
        raise UserError(f"{out} holds {STATE} but not its {CONFIG}: bring that back, or use another out")
    before = _read_yaml(file) if file.is_file() else None
    changed = _changed(before, config.to_dict(cfg))
    if changed and (has_state or (out / CHECKPOINT).is_file()):
        key, old, new = changed[0]
        more = f" and {len(changed) - 1} more keys" if len(changed) > 1 else ""
        raise UserError(
            f"{out} holds a run with {key}={old!r}, now it is {new!r}{more}: use another out, or the old "
            "values to resume"
        )
    if has_state:
        return
    # What was timed holds for the same job, or a run that was killed early could end with other weights.
    keep_runtime = before is not None and not changed
    for name in (CHOICES, BEST, MONITOR, *([] if keep_runtime else [RUNTIME, SOURCE])):
        (out / name).unlink(missing_ok=True)
    with atomic_path(file) as partial:
        config.save(cfg, partial)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn whatever a full disk makes torch, safetensors or Python raise into one line.

    Raises:
        UserError: Something could not be written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if "CUDA" in str(error):
            raise
        reason = " ".join(str(error).split())[:160]
        saved = "what was saved before is whole, and the run goes on from there"
        raise UserError(
            f"{out}: could not save ({reason}): make room on the disk and run the same command again; "
            f"{saved if (out / STATE).is_file() else 'nothing was saved before'}"
        ) from error


def stored_choices(out: Path) -> Choices | None:
    """Read what was chosen when the run began; None for a run that begins now."""
    stored = read_json(out / CHOICES)
    return None if stored is None else {key: (value, reason) for key, (value, reason) in stored.items()}


def store_choices(out: Path, choices: Choices) -> None:
    """Write what was chosen, so that a resumed run does the same whatever later versions would choose."""
    with atomic_path(out / CHOICES) as partial:
        partial.write_text(json.dumps(choices, indent=1))


def read_json(file: Path) -> dict[str, Any] | None:
    """Read what a run stored about itself; None when there is nothing.

    Raises:
        UserError: The file is damaged.
    """
    if not file.is_file():
        return None
    try:
        stored: dict[str, Any] = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(
            f"{file} is damaged: remove it to have its settings chosen anew, or use another out"
        ) from error
    return stored


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        stored = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is damaged: use another out, or remove it to begin anew") from error
    if not isinstance(stored, dict):
        raise UserError(f"{file} is damaged: use another out, or remove it to begin anew")
    return stored


def _changed(before: dict[str, Any] | None, now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """List the keys that decide about the weights and differ, with their old and new values."""
    if before is None:
        return []
    old, new = _flat(before), _flat(now)
    keys = [key for key in sorted(old | new) if key not in _MAY_CHANGE]
    return [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat

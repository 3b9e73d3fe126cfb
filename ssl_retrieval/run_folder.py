"""What stands in a run's folder besides weights: whose it is, and what was chosen at its start."""

import json
from pathlib import Path
from typing import Any

import yaml

from ssl_retrieval import config
from ssl_retrieval.atomic import atomic_path
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import Choices

STATE = "state.pt"
CHECKPOINT = "checkpoint.safetensors"
BEST = "best.safetensors"
CONFIG = "config.yaml"
CHOICES = "choices.json"
RUNTIME = "runtime.json"
MONITOR = "monitor.jsonl"

_MAY_CHANGE = {"out", "device", "save_every_s", "log_every"}


def claim(out: Path, cfg: Any) -> None:
    """Store the config in the run's folder; refuse to go on with another one.

    A run that never came to save anything claims nothing: what stopped it may be the config's mistake.

    Raises:
        UserError: The folder holds a run with other values.
    """
    file = out / CONFIG
    if file.is_file() and (out / STATE).is_file():
        old, new = _flat(yaml.safe_load(file.read_text())), _flat(config.to_dict(cfg))
        changed = [k for k in sorted(old | new) if old.get(k) != new.get(k) and k not in _MAY_CHANGE]
        if changed:
            key = changed[0]
            more = f" and {len(changed) - 1} more keys" if len(changed) > 1 else ""
            raise UserError(
                f"{out} holds a run with {key}={old.get(key)!r}, now it is {new.get(key)!r}{more}: use "
                "another out, or the old values to resume"
            )
        return
    for name in (RUNTIME, CHOICES, BEST, MONITOR):
        (out / name).unlink(missing_ok=True)
    with atomic_path(file) as partial:
        config.save(cfg, partial)


def stored_choices(out: Path) -> Choices | None:
    """Read what was chosen when the run began; None for a run that begins now."""
    file = out / CHOICES
    if not file.is_file():
        return None
    return {key: (value, reason) for key, (value, reason) in json.loads(file.read_text()).items()}


def store_choices(out: Path, choices: Choices) -> None:
    """Write what was chosen, so that a resumed run does the same whatever later versions would choose."""
    with atomic_path(out / CHOICES) as partial:
        partial.write_text(json.dumps(choices, indent=1))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat

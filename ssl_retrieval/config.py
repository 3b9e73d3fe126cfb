"""Configs: dataclass schema <- yaml <- ``key=value``; every mistake is one clear line."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException, ValidationError

from ssl_retrieval import plugins
from ssl_retrieval.errors import UserError

Schema = TypeVar("Schema")


def plugin(kind: str) -> Any:
    """Declare a schema field whose keys depend on its ``name`` (see ``plugins.find``)."""
    return dataclasses.field(default=None, metadata={"kind": kind})


def plugin_map(kind: str) -> Any:
    """Declare a schema field that maps labels to plugin sections."""
    return dataclasses.field(default_factory=dict, metadata={"kind": kind, "map": True})


def load(schema: type[Schema], file: Path | None, overrides: Sequence[str] = ()) -> Schema:
    """Read a config.

    Args:
        schema: A dataclass; its fields and types are the allowed keys and values.
        file: A yaml file; None = only defaults and overrides.
        overrides: ``key=value`` texts; dots reach into sections, values are read as yaml.

    Raises:
        UserError: A missing file, broken yaml, unknown key (the nearest right one is named), wrong
            type, missing value, or unknown plugin.
    """
    try:
        raw: Any = OmegaConf.create(_read_yaml(file) if file else {})
        for item in overrides:
            key, equals, _ = item.partition("=")
            if not equals or not key.strip():
                raise UserError(f"cannot read override {item!r}: write it as key=value")
            raw = OmegaConf.merge(raw, OmegaConf.from_dotlist([item]))
        tree = OmegaConf.to_container(raw, resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError, TypeError) as error:
        where = str(file) if file else "the overrides"
        raise UserError(f"{where}: {_one_line(error)}") from error
    assert isinstance(tree, dict)
    return build(schema, {str(key): value for key, value in tree.items()})


def build(schema: type[Schema], tree: Mapping[str, Any], where: str = "") -> Schema:
    """Make a schema object from nested plain values (see `load`).

    Args:
        schema: The dataclass.
        tree: Key -> value.
        where: Dotted prefix of the keys, for messages.
    """
    kinds = {f.name: f.metadata for f in dataclasses.fields(schema) if "kind" in f.metadata}  # type: ignore[arg-type]
    _refuse_unknown_keys(schema, tree, where)
    plain = {key: value for key, value in tree.items() if key not in kinds}
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), plain)
        result = OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        key = _dotted(where, error.full_key)
        raise UserError(f"missing value for {key!r}: set it in the yaml or as {key}=…") from error
    except ValidationError as error:
        key = _dotted(where, error.full_key)
        raise UserError(f"wrong value for {key!r}: {_one_line(error)}") from error
    except OmegaConfBaseException as error:
        raise UserError(f"config{' ' + where if where else ''}: {_one_line(error)}") from error
    assert isinstance(result, schema)
    for name, meta in kinds.items():
        prefix = _dotted(where, name)
        section = tree.get(name)
        if meta.get("map"):
            sections = _section(section or {}, prefix)
            value: Any = {
                str(label): plugin_config(meta["kind"], item, _dotted(prefix, str(label)))
                for label, item in sections.items()
            }
        else:
            value = None if section is None else plugin_config(meta["kind"], section, prefix)
        setattr(result, name, value)
    return result


def plugin_config(kind: str, section: Any, where: str) -> Any:
    """Make the config of the plugin that ``section["name"]`` names."""
    tree = _section(section, where)
    name = tree.get("name")
    if not isinstance(name, str) or name == "???":
        raise UserError(f"missing value for '{where}.name': one of {', '.join(plugins.known(kind))}")
    return build(plugins.find(kind, name).Config, tree, where)


def require_sections(config: Any, *names: str) -> None:
    """Refuse a config object without one of its plugin sections.

    Raises:
        UserError: Names the missing one.
    """
    for name in names:
        if getattr(config, name) is None:
            raise UserError(f"missing section {name!r}: give at least {name}.name, as {name}.name=…")


def to_dict(config: Any) -> dict[str, Any]:
    """Give a config object as nested plain values (for yaml, json and digests)."""
    result: dict[str, Any] = dataclasses.asdict(config)
    return result


def save(config: Any, file: Path) -> None:
    """Write a config object as yaml that `load` reads back."""
    file.write_text(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))


def _read_yaml(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"no config file {str(file)!r}: give the path of a yaml file")
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file}: cannot be read as yaml: {_one_line(error)}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{file}: a config is a mapping of keys to values, not a {type(tree).__name__}")
    return tree


def _section(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{where!r} must be a section of keys (with a name), not {value!r}")
    return {str(key): item for key, item in value.items()}


def _refuse_unknown_keys(schema: Any, tree: Mapping[str, Any], where: str) -> None:
    known = {f.name: f for f in dataclasses.fields(schema)}
    for key, value in tree.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            guess = f"; did you mean {_dotted(where, near[0])!r}?" if near else ""
            keys = ", ".join(known)
            raise UserError(f"unknown key {_dotted(where, str(key))!r}{guess} (known keys: {keys})")
        nested = known[key].type
        if dataclasses.is_dataclass(nested) and isinstance(value, Mapping):
            _refuse_unknown_keys(nested, value, _dotted(where, key))


def _dotted(where: str, key: str | None) -> str:
    return ".".join(part for part in (where, key or "") if part)


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    wanted = [line for line in lines if not line.startswith(("full_key", "object_type", "reference_type"))]
    return " ".join(wanted) or type(error).__name__

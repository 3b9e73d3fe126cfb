"""Configs: dataclass schema <- yaml <- ``key=value``; every mistake is one clear line."""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf._utils import get_omega_conf_dumper
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException, ValidationError

from ssl_retrieval import plugins
from ssl_retrieval.console import say
from ssl_retrieval.errors import UserError

Schema = TypeVar("Schema")

_TYPES_IN_WORDS = {
    list: "a list, as [a, b],",
    dict: "a section of keys",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
}


def plugin(kind: str) -> Any:
    """Declare a schema field whose keys depend on its ``name`` (see ``plugins.find``)."""
    return dataclasses.field(default=None, metadata={"kind": kind})


def plugin_map(kind: str, shared: str = "") -> Any:
    """Declare a schema field that maps labels to plugin sections.

    Args:
        kind: See ``plugins.find``.
        shared: Another field of the schema, whose keys stand for those that a section without ``name`` lacks.
    """
    return dataclasses.field(default_factory=dict, metadata={"kind": kind, "map": True, "shared": shared})


def load(
    schema: type[Schema],
    file: Path | None,
    overrides: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> Schema:
    """Read a config.

    Args:
        schema: A dataclass; its fields and types are the allowed keys and values.
        file: A yaml file; None = only defaults and overrides.
        overrides: ``key=value`` texts; dots reach into sections, values are read as yaml.
        settings: Nested keys and plain values that override the file too.

    Raises:
        UserError: A missing file, broken yaml, unknown key (the nearest right one is named), wrong
            type, missing value, or unknown plugin.
    """
    given: Any = OmegaConf.create(dict(settings or {}))
    for item in overrides:
        given = OmegaConf.merge(given, _read_override(item))
    raw: Any = _read_yaml(file) if file else OmegaConf.create({})
    _leave_out_keys_of_replaced_plugins(schema, raw, given)
    raw = OmegaConf.merge(raw, given)
    try:
        tree = OmegaConf.to_container(raw, resolve=True)
    except OmegaConfBaseException as error:
        where = " and ".join([*([str(file)] if file else []), *(["the overrides"] if overrides else [])])
        raise UserError(f"{where}: {_one_line(error)}: mend the ${{…}} there") from error
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
    refuse_unknown_keys(schema, tree, where)
    plain = {key: value for key, value in tree.items() if key not in kinds}
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), plain)
        result = OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        key = _dotted(where, error.full_key)
        raise UserError(f"missing value for {key!r}: set it in the yaml or as {key}=…") from error
    except ValidationError as error:
        key = _dotted(where, error.full_key)
        raise UserError(f"wrong value for {key!r}: {_why_wrong(schema, plain, error)}") from error
    except OmegaConfBaseException as error:
        raise UserError(f"config{' ' + where if where else ''}: {_one_line(error)}") from error
    assert isinstance(result, schema)
    for name, meta in kinds.items():
        prefix = _dotted(where, name)
        section = tree.get(name)
        if meta.get("map"):
            sections = _section(section or {}, prefix, f"{prefix}.LABEL.name")
            shared = tree.get(meta["shared"]) or {}
            value: Any = {
                label: plugin_config(meta["kind"], _completed(item, shared), _dotted(prefix, label))
                for label, item in sections.items()
            }
        else:
            value = None if section is None else plugin_config(meta["kind"], section, prefix)
        setattr(result, name, value)
    return result


def plugin_config(kind: str, section: Any, where: str) -> Any:
    """Make the config of the plugin that ``section["name"]`` names."""
    tree = _section(section, where, f"{where}.name")
    name = tree.get("name")
    if not isinstance(name, str) or name == "???":
        raise UserError(f"missing value for '{where}.name': one of {plugins.listing(kind)}")
    return build(plugins.find(kind, name).Config, tree, where)


def _completed(section: Any, shared: Mapping[str, Any]) -> Any:
    return section if not isinstance(section, Mapping) or "name" in section else {**shared, **section}


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
    # OmegaConf's writer quotes texts that its reader takes for numbers and yaml's does not, as 0E0.
    dumper = get_omega_conf_dumper()
    file.write_text(yaml.dump(to_dict(config), Dumper=dumper, sort_keys=False, allow_unicode=True), "utf-8")


def _read_yaml(file: Path) -> Any:
    if not file.is_file():
        raise UserError(f"no config file {str(file)!r}: give the path of a yaml file that exists")
    try:
        # OmegaConf's reader, unlike yaml's own, refuses a key that is given twice.
        tree = OmegaConf.load(file)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        raise UserError(f"{file}: not valid yaml:{line} {error.problem}") from error
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file}: cannot be read as a config: {_one_line(error)}") from error
    if not OmegaConf.is_dict(tree):
        raise UserError(f"{file}: a config is a mapping of keys to values (key: value), not a list")
    return tree


def _read_override(item: str) -> Any:
    key, equals, value = item.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise UserError(f"cannot read override {item!r}: write it as key=value")
    try:
        return OmegaConf.from_dotlist([item])
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(
            f"cannot read override {item!r}: put the value in quotes, {key}='\"{value}\"'"
        ) from error


def _section(value: Any, where: str, example: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{where!r} must be a section of keys (as {example}=…), not {value!r}")
    return {str(key): item for key, item in value.items()}


def refuse_unknown_keys(schema: Any, tree: Mapping[str, Any], where: str) -> None:
    """Refuse keys that a schema does not have, at any depth.

    Args:
        schema: The dataclass.
        tree: Key -> value.
        where: Dotted prefix of the keys, for messages.

    Raises:
        UserError: Names the nearest right key.
    """
    known = {f.name: f for f in dataclasses.fields(schema)}
    for key, value in tree.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            guess = f"; did you mean {_dotted(where, near[0])!r}?" if near else ""
            keys = ", ".join(known)
            raise UserError(f"unknown key {_dotted(where, str(key))!r}{guess} (known keys: {keys})")
        prefix, nested = _dotted(where, key), known[key].type
        sections = {prefix: value}
        if get_origin(nested) is dict and dataclasses.is_dataclass(get_args(nested)[1]):
            nested = get_args(nested)[1]
            example = f"{prefix}.LABEL.{dataclasses.fields(nested)[0].name}"
            labelled = _section(value, prefix, example)
            sections = {_dotted(prefix, label): section for label, section in labelled.items()}
        if not dataclasses.is_dataclass(nested):
            continue
        for place, section in sections.items():
            example = f"{place}.{dataclasses.fields(nested)[0].name}"
            refuse_unknown_keys(nested, _section(section, place, example), place)


def _leave_out_keys_of_replaced_plugins(schema: Any, raw: Any, given: Any, where: str = "") -> None:
    """Drop, in ``raw``, a section's keys that an overriding ``name`` has no use for, and say so.

    Otherwise ``model.name=…`` would be refused for keys that the user never wrote. Sections within a
    plugin's section, as ``method.teacher``, are treated alike.
    """
    before: Any = OmegaConf.to_container(raw)
    after: Any = OmegaConf.to_container(given)
    for field in dataclasses.fields(schema):
        old, new = before.get(field.name), after.get(field.name)
        if "kind" not in field.metadata or not (isinstance(old, dict) and isinstance(new, dict)):
            continue
        name, place = new.get("name", old.get("name")), _dotted(where, field.name)
        if not isinstance(name, str) or field.metadata.get("map"):
            continue
        own = plugins.find(field.metadata["kind"], name).Config if name != "???" else None
        if own is not None and name != old.get("name"):
            known = {f.name for f in dataclasses.fields(own)}
            for key in [key for key in old if key not in known]:
                del raw[field.name][key]
                say(f"{place}.{key} of the yaml does not apply to {place}.name={name}: left out")
        if own is not None:
            _leave_out_keys_of_replaced_plugins(own, raw[field.name], given[field.name], place)


def _dotted(where: str, key: str | None) -> str:
    return ".".join(part for part in (where, key or "") if part)


def _why_wrong(schema: Any, tree: Any, error: OmegaConfBaseException) -> str:
    """Say what was given and what is needed, in words for people who do not know OmegaConf."""
    wanted, value = schema, tree
    for key in (error.full_key or "").split("."):
        field = next((f for f in dataclasses.fields(wanted) if f.name == key), None)
        if field is None or not isinstance(value, Mapping) or key not in value:
            return _one_line(error)
        wanted, value = field.type, value[key]
        if not dataclasses.is_dataclass(wanted):
            break
    options = [get_origin(wanted), wanted, *get_args(wanted)]
    needed = next((_TYPES_IN_WORDS[kind] for kind in options if kind in _TYPES_IN_WORDS), "another type")
    return f"{needed} is needed, not {'nothing' if value is None else repr(value)}"


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    wanted = [line for line in lines if not line.startswith(("full_key", "object_type", "reference_type"))]
    return " ".join(wanted) or type(error).__name__


def in_section(text: str, section: Any, name: str) -> str:
    """Let a loader's message name the keys of the section it was given; loaders know theirs as ``data``.

    Args:
        text: The message.
        section: The dataset section, of the loader's ``Config``.
        name: What the section is called.
    """
    keys = "|".join(field.name for field in dataclasses.fields(section))
    return re.sub(rf"\bdata\.({keys})\b", rf"{name}.\1", text)

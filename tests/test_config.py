"""Precedence, and one line that helps for every mistake."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_retrieval import config
from ssl_retrieval.embed import EmbedConfig
from ssl_retrieval.errors import UserError
from ssl_retrieval.evaluate import EvaluateConfig
from ssl_retrieval.grid import CompareConfig, run_grid
from ssl_retrieval.train import PretrainConfig

EMBED = """
out: there
data: {name: folder, root: photos}
model: {name: pixels}
"""
PRETRAIN = """
out: there
data: {name: folder, root: photos}
model: {name: resnet10t}
method: {name: simclr}
"""


@dataclass
class Inner:
    """A nested section."""

    depth: int = 1
    names: list[str] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)


@dataclass
class Outer:
    """A schema of every type."""

    out: str = "???"
    size: int | None = None
    rate: float = 0.5
    loud: bool = False
    inner: Inner = field(default_factory=Inner)


def load(schema: type, yaml: str, *overrides: str, folder: Path) -> Any:
    file = folder / "job.yaml"
    file.write_text(yaml)
    return config.load(schema, file, overrides)


def mistake(schema: type, yaml: str, *overrides: str, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(schema, yaml, *overrides, folder=folder)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


def test_overrides_beat_the_yaml_which_beats_the_defaults(tmp_path: Path) -> None:
    found = load(
        Outer, "out: yaml\nrate: 2\ninner: {depth: 3}", "out=key", "inner.names=[a, b]", folder=tmp_path
    )
    assert found == Outer(out="key", rate=2.0, inner=Inner(depth=3, names=["a", "b"]))


def test_the_last_override_wins(tmp_path: Path) -> None:
    assert load(Outer, "out: yaml", "size=1", "size=2", folder=tmp_path).size == 2


def test_without_a_file_overrides_are_enough() -> None:
    assert config.load(Outer, None, ["out=x", "loud=true"]) == Outer(out="x", loud=True)


def test_a_plugin_section_gets_the_types_and_defaults_of_its_plugin(tmp_path: Path) -> None:
    found = load(EmbedConfig, EMBED, "model.size=4", "data.labels=none", folder=tmp_path)
    assert found.model.size == 4
    assert (found.data.labels, found.data.on_error) == ("none", "skip")


def test_a_timm_name_selects_the_timm_extractor(tmp_path: Path) -> None:
    found = load(EmbedConfig, EMBED, "model.name=resnet10t.c3_in1k", "model.weights=random", folder=tmp_path)
    assert (found.model.name, found.model.pool) == ("resnet10t.c3_in1k", "model")


@pytest.mark.parametrize("value", ["photos (1)", "it's", "C:\\x y", "~/a", "1", "2024-01-01", "été", "x=y"])
def test_paths_as_people_type_them_arrive_unchanged(tmp_path: Path, value: str) -> None:
    assert load(EmbedConfig, EMBED, f"data.root={value}", folder=tmp_path).data.root == value


def test_interpolation_reaches_other_keys(tmp_path: Path) -> None:
    assert load(EmbedConfig, EMBED, "data.root=${out}/images", folder=tmp_path).data.root == "there/images"


@pytest.mark.parametrize(
    ("schema", "yaml", "override", "needed"),
    [
        (EmbedConfig, EMBED, "sead=1", ["'sead'", "did you mean 'seed'"]),
        (EmbedConfig, EMBED, "embed.batch_sise=1", ["did you mean 'embed.batch_size'"]),
        (EmbedConfig, EMBED, "model.sise=1", ["'model.sise'", "did you mean 'model.size'"]),
        (EmbedConfig, EMBED, "data.rot=x", ["did you mean 'data.root'"]),
        (PretrainConfig, PRETRAIN, "optimizer.lrr=1", ["did you mean 'optimizer.lr'"]),
        (PretrainConfig, PRETRAIN, "method.augment.crop_mn=1", ["did you mean 'method.augment.crop_min'"]),
        (CompareConfig, "out: x", "model.a.name=pixels", ["did you mean 'models'"]),
        (CompareConfig, "out: x\nmodels: {a: {name: pixels}}", "models.a.sise=1", ["'models.a.size'"]),
        (EvaluateConfig, EMBED, "protocol.imagesize=1", ["did you mean 'protocol.image_size'"]),
        (EmbedConfig, EMBED, "zzz=1", ["unknown key 'zzz'", "known keys: out, seed, device"]),
    ],
)
def test_a_misspelt_key_names_the_nearest(
    tmp_path: Path, schema: type, yaml: str, override: str, needed: list[str]
) -> None:
    text = mistake(schema, yaml, override, folder=tmp_path)
    for part in needed:
        assert part in text


@pytest.mark.parametrize(
    ("shared", "of_task", "needed"),
    [
        (
            "{name: folder, root: x}",
            "{labls: none}",
            "'tasks.small.labls'; did you mean 'tasks.small.labels'",
        ),
        ("{name: folder, rot: x}", "{labels: none}", "'data.rot'; did you mean 'data.root'"),
        ("{name: folder}", "{labels: none}", "missing value for 'data.root'"),
        ("{root: x}", "{labels: none}", "missing value for 'data.name'"),
        ("{name: foldr}", "{}", "unknown dataset 'foldr'; did you mean 'folder'"),
        ("{name: folder, root: x}", "5", "'tasks.small' must be a section"),
    ],
)
def test_mistakes_in_the_tasks_of_compare(tmp_path: Path, shared: str, of_task: str, needed: str) -> None:
    yaml = (
        f"out: {tmp_path}/out\ndata: {shared}\ntasks: {{small: {of_task}}}\nmodels: {{a: {{name: pixels}}}}"
    )
    with pytest.raises(UserError) as caught:
        run_grid(load(CompareConfig, yaml, folder=tmp_path))
    assert needed in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "needed"),
    [
        ("size=abc", "'size': a whole number is needed, not 'abc'"),
        ("size=1.5", "'size': a whole number is needed, not 1.5"),
        ("rate=fast", "'rate': a number is needed, not 'fast'"),
        ("loud=perhaps", "'loud': true or false is needed, not 'perhaps'"),
        ("out=[1, 2]", "'out': a text is needed, not [1, 2]"),
        ("inner=5", "'inner' must be a section of keys (as inner.depth=…), not 5"),
        ("inner.depth=deep", "'inner.depth': a whole number is needed, not 'deep'"),
        ("inner.names=a", "'inner.names': a list, as [a, b], is needed, not 'a'"),
        ("inner.rates=a", "'inner.rates': a section of keys is needed, not 'a'"),
        ("out=", "'out': a text is needed, not nothing"),
        ("rate=", "'rate': a number is needed, not nothing"),
    ],
)
def test_a_wrong_type_says_what_is_needed(tmp_path: Path, override: str, needed: str) -> None:
    assert needed in mistake(Outer, "out: x", override, folder=tmp_path)


def test_a_plugin_name_instead_of_a_section(tmp_path: Path) -> None:
    assert "'model' must be a section of keys (as model.name=…)" in mistake(
        EmbedConfig, EMBED, "model=pixels", folder=tmp_path
    )
    assert "as models.LABEL.name=…" in mistake(CompareConfig, "out: x\nmodels: [pixels]", folder=tmp_path)


@pytest.mark.parametrize("yaml", ["", "out: ???", "size: 3"])
def test_a_missing_value_is_named(tmp_path: Path, yaml: str) -> None:
    assert mistake(Outer, yaml, folder=tmp_path) == "missing value for 'out': set it in the yaml or as out=…"


def test_a_missing_value_in_a_plugin_section_is_named_in_full(tmp_path: Path) -> None:
    yaml = "out: x\ndata: {name: folder, root: '???'}\nmodel: {name: pixels}"
    assert "missing value for 'data.root'" in mistake(EmbedConfig, yaml, folder=tmp_path)


@pytest.mark.parametrize(
    ("value", "needed"),
    [("${size2}", "size2"), ("${oc.env:NOT_THERE_AT_ALL}", "NOT_THERE_AT_ALL"), ("${out}", "Recursive")],
)
def test_interpolation_to_nothing(tmp_path: Path, value: str, needed: str) -> None:
    text = mistake(Outer, "out: x", f"out={value}", folder=tmp_path)
    assert needed in text
    assert "mend the ${…}" in text


def test_interpolation_to_a_missing_value(tmp_path: Path) -> None:
    text = mistake(EmbedConfig, "out: ???\ndata: {name: folder, root: '${out}'}", folder=tmp_path)
    assert "Missing mandatory value: out" in text


@pytest.mark.parametrize(
    ("override", "needed"),
    [
        (
            "data.name=foldr",
            ["dataset 'foldr'; did you mean 'folder'", ", folder, ", "ukbench)"],
        ),
        ("data.name=zzzz", ["unknown dataset 'zzzz' (known: cars196, cifar10"]),
        (
            "model.name=pixel",
            ["did you mean 'pixels'", "known: asmk, bow, checkpoint, color_histogram, color_moments"],
        ),
        ("model.name=resnet5O", ["unknown extractor 'resnet5O'; did you mean 'resnet50'"]),
        ("model.name=timm_model", ["unknown extractor 'timm_model'", "any timm model"]),
        ("model.name=", ["missing value for 'model.name': one of asmk"]),
        ("model.name=true", ["missing value for 'model.name'"]),
    ],
)
def test_an_unknown_plugin_lists_the_known_ones(tmp_path: Path, override: str, needed: list[str]) -> None:
    text = mistake(EmbedConfig, EMBED, override, folder=tmp_path)
    for part in needed:
        assert part in text


def test_an_unknown_method_lists_the_known_ones(tmp_path: Path) -> None:
    text = mistake(PretrainConfig, PRETRAIN, "method.name=simcrl", folder=tmp_path)
    assert "unknown method 'simcrl'; did you mean 'simclr'" in text
    assert "known: arcface, barlow_twins, byol" in text


@pytest.mark.parametrize(
    ("yaml", "needed"),
    [
        ("out: [1", "not valid yaml: line 1: expected ',' or ']'"),
        ("out: x\n\tsize: 1", "not valid yaml: line 2"),
        ("out: x\nout: y", "found duplicate key out"),
        ("- out\n- size", "a config is a mapping"),
        ("only words", "unknown key 'only words'"),
        ("5", "cannot be read as a config"),
        ("out: ${", "cannot be read as a config"),
        ("1: 2", "unknown key '1'"),
    ],
)
def test_a_broken_yaml_names_file_and_place(tmp_path: Path, yaml: str, needed: str) -> None:
    assert needed in mistake(Outer, yaml, folder=tmp_path)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_bytes(b"\xff\xfe\x00\x9f")
    with pytest.raises(UserError, match=r"job\.yaml: "):
        config.load(Outer, file)


@pytest.mark.parametrize("name", ["nowhere.yaml", "."])
def test_a_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"no config file .* give the path of a yaml file"):
        config.load(Outer, tmp_path / name)


@pytest.mark.parametrize("item", ["key", "=5", ".=5", "inner.=5", "a..b=1", ""])
def test_an_override_that_is_none(tmp_path: Path, item: str) -> None:
    assert "write it as key=value" in mistake(Outer, "out: x", item, folder=tmp_path)


@pytest.mark.parametrize("value", ["@x", "[1, 2", "{a", "${"])
def test_a_value_that_is_no_yaml_names_the_override_not_the_file(tmp_path: Path, value: str) -> None:
    text = mistake(Outer, "out: x", f"out={value}", folder=tmp_path)
    assert f"cannot read override 'out={value}': put the value in quotes" in text
    assert "job.yaml" not in text


def test_the_advice_to_quote_works(tmp_path: Path) -> None:
    assert load(Outer, "out: x", 'out="@x"', folder=tmp_path).out == "@x"


def test_missing_sections_are_named() -> None:
    cfg = config.load(EmbedConfig, None, ["out=x", "data.name=folder", "data.root=y"])
    with pytest.raises(UserError, match=r"missing section 'model': give at least model.name"):
        config.require_sections(cfg, "data", "model")


@pytest.mark.parametrize(
    ("schema", "yaml"),
    [
        (EmbedConfig, EMBED),
        (PretrainConfig, PRETRAIN),
        (CompareConfig, "out: x\nmodels: {lite0 avg: {name: resnet10t, crop: 0.9}}\nnotes: ['a: b', '# c']"),
    ],
)
def test_save_and_load_are_inverse(tmp_path: Path, schema: type, yaml: str) -> None:
    before = load(schema, yaml, folder=tmp_path)
    config.save(before, tmp_path / "saved.yaml")
    assert config.load(schema, tmp_path / "saved.yaml") == before


@given(
    out=st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="$\\"), min_size=1).filter(
        lambda text: text != "???"
    ),
    rate=st.floats(allow_nan=False),
)
def test_save_and_load_are_inverse_for_any_text_and_number(
    tmp_path_factory: pytest.TempPathFactory, out: str, rate: float
) -> None:
    file = tmp_path_factory.mktemp("round-trip") / "saved.yaml"
    before = Outer(out=out, rate=rate)
    config.save(before, file)
    assert config.load(Outer, file) == before


def test_overriding_a_name_leaves_out_keys_the_new_plugin_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "evaluate.yaml"
    file.write_text(
        "out: o\ndata: {name: folder, root: r}\n"
        "model: {name: tf_efficientnet_lite0, weights: offline, pool: gem}\n"
    )
    cfg = config.load(EvaluateConfig, file, ["model.name=checkpoint", "model.path=runs/a"])
    assert (cfg.model.path, cfg.model.pool) == ("runs/a", "gem")
    assert "model.weights of the yaml does not apply to model.name=checkpoint" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"unknown key 'model\.wieghts'"):
        config.load(EvaluateConfig, file, ["model.name=checkpoint", "model.path=a", "model.wieghts=b"])


def test_models_without_a_name_share_the_network(tmp_path: Path) -> None:
    text = """
out: there
network: {name: resnet10t, weights: random, image_size: 64}
models:
  average: {pool: avg}
  large: {pool: gem, image_size: 96}
  pixels: {name: pixels}
"""
    cfg = load(CompareConfig, text, "network.seed=3", folder=tmp_path)
    average, large, pixels = (cfg.models[name] for name in ("average", "large", "pixels"))
    assert (average.name, average.weights, average.image_size, average.seed) == ("resnet10t", "random", 64, 3)
    assert (large.name, large.image_size, large.pool) == ("resnet10t", 96, "gem")
    assert pixels.name == "pixels"


def test_a_mistake_in_the_shared_network_is_named(tmp_path: Path) -> None:
    text = "out: there\nnetwork: {name: resnet10t, wheights: random}\nmodels: {average: {pool: avg}}\n"
    assert "did you mean 'models.average.weights'" in mistake(CompareConfig, text, folder=tmp_path)
    without = "out: there\nmodels: {average: {pool: avg}}\n"
    assert "models.average.name" in mistake(CompareConfig, without, folder=tmp_path)

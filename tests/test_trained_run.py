"""Taking vectors from a run's folder: teacher, student, and every layer of the projector."""

from pathlib import Path
from typing import Any

import pytest
import torch
from method_makers import method_of, needs_labels
from short_runs import go, write_job, write_many_sizes
from torch import Tensor, nn

from ssl_retrieval import backbones, plugins, trained_run
from ssl_retrieval.errors import UserError
from ssl_retrieval.extractors.checkpoint import Config, Extractor
from ssl_retrieval.projector_points import ProjectorPoint, layer_of, linear_layers, num_layers

UNLABELLED = [name for name in plugins.known("method") if not needs_labels(name)]
WITHOUT = {"distill", "mae", "sscd"}
"""Methods whose training puts nothing on the pooled vector that is thrown away."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few steps of BYOL: a teacher, and a projector for each network."""
    folder = tmp_path_factory.mktemp("byol")
    job = write_job(
        folder,
        write_many_sizes(folder / "photos"),
        method={"name": "byol", "hidden_dim": 24, "output_dim": 12, "momentum": 0.5},
    )
    go(job, folder / "run")
    return folder / "run"


def pictures() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (3, 3, 32, 32), generator=generator).to(torch.uint8)


def vectors(run: Path, **options: Any) -> Tensor:
    with torch.inference_mode():
        made: Tensor = Extractor(Config(path=str(run), **options)).eval()(pictures())
    return made


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_every_layer_of_a_projector_is_what_a_loop_over_its_parts_gives(run: Path, network: str) -> None:
    loaded = trained_run.load(run)
    assert loaded.points(network) == ["projector.1", "projector.2"]
    projector = loaded.method.get_submodule("projector" if network == "student" else "teacher_projector")
    value, wanted = vectors(run, network=network), []
    for part in projector.layers:
        if isinstance(part, nn.Linear):
            wanted.append(value)
        with torch.inference_mode():
            value = part(value)
    for number, expected in enumerate([*wanted[1:], value], 1):
        found = vectors(run, network=network, point=f"projector.{number}")
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_student_and_teacher_differ_and_the_exported_one_is_the_students(run: Path) -> None:
    student, teacher = vectors(run, network="student"), vectors(run, network="teacher")
    assert torch.equal(student, vectors(run))
    assert not torch.allclose(student, teacher, atol=1e-4)


def test_their_digests_differ(run: Path) -> None:
    options: list[dict[str, Any]] = [{}, {"network": "teacher"}, {"point": "projector.1"}]
    digests = {Extractor(Config(path=str(run), **chosen)).weights_digest for chosen in options}
    assert len(digests) == 3


@pytest.mark.parametrize("name", UNLABELLED)
def test_every_methods_projector_takes_what_its_network_pools(name: str) -> None:
    method = method_of(name).eval()
    found = method.projectors()
    assert (not found) == (name in WITHOUT)
    assert found.keys() <= method.networks().keys()
    dim = backbones.feature_dim(method.encoder)
    pooled = torch.randn(2, dim, generator=torch.Generator().manual_seed(0))
    for projector in found.values():
        layers = linear_layers(projector, dim)
        assert len(layers) == num_layers(projector, dim) >= 2
        with torch.no_grad():
            first = ProjectorPoint(projector, 1, dim).project(pooled)
            last = ProjectorPoint(projector, len(layers), dim).project(pooled)
            assert torch.equal(last, projector(pooled))
        assert first.shape == (2, projector.get_submodule(layers[1]).in_features)


def test_a_method_that_trains_its_embedding_has_no_other_projector() -> None:
    assert method_of("arcface").projectors() == {}


def test_other_sizes_of_the_input(run: Path) -> None:
    extractor = Extractor(Config(path=str(run), image_size=48))
    assert (extractor.preprocess_spec.size, extractor.dim) == (48, Extractor(Config(path=str(run))).dim)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"network": "both"}, "model.network='both': a run of byol has student, teacher"),
        ({"point": "projector.9"}, "model.point=projector.9: this projector has the points projector.1 to"),
        ({"point": "projector"}, "model.point='projector': it is written projector.1"),
        ({"point": "projector.1", "pool": "gem"}, "leave out model.pool"),
        ({"point": "projector.1", "layer": "-2"}, "leave out model.layer"),
        ({"image_size": 0}, "model.image_size=0: must be at least 1"),
    ],
)
def test_mistakes_are_named(run: Path, options: dict[str, Any], names: str) -> None:
    with pytest.raises(UserError) as caught:
        vectors(run, **options)
    assert names in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_alone_has_no_more_than_the_exported_network(run: Path) -> None:
    with pytest.raises(UserError, match=r"need a run's folder with checkpoint.safetensors and state.pt"):
        Extractor(Config(path=str(run / "checkpoint.safetensors"), network="teacher"))


def test_a_damaged_state_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes((run / "checkpoint.safetensors").read_bytes())
    (tmp_path / "state.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"state.pt is damaged"):
        trained_run.load(tmp_path)
    torch.save({"method": {}}, tmp_path / "state.pt")
    with pytest.raises(UserError, match="does not fit the recipe"):
        trained_run.load(tmp_path)


def test_points_are_read_as_they_are_written() -> None:
    assert layer_of("projector.12") == 12
    for wrong in ("projector.0", "projector.-1", "head.1", ""):
        with pytest.raises(UserError, match="projector"):
            layer_of(wrong)

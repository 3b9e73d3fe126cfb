"""Two processes on half a batch each do what one does on all of it, for every method."""

import json
import os
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import ONE_THREAD
from method_makers import IMAGE_SIZE, method_of, views_for
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from ssl_retrieval import backbones, distributed, plugins
from ssl_retrieval.errors import UserError

METHODS = plugins.known("method")
STEPS = 2
ROUNDING = 3e-4
"""How far rounding carries a gradient."""
SORTS = {"visreg"}
"""Methods that rank what a network gives: in float32, nearly equal values changed places on one machine in
a few, and the gradient jumped by a hundredth. In float64 they keep their places."""


def smooth(method: nn.Module) -> None:
    """Take out what has kinks: rounding pushes a value over one now and then, and its gradient jumps."""
    for module in list(method.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Softplus())
            elif isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))


def train(name: str, world: int, rank: int) -> dict[str, Any]:
    """Train for a few steps on this rank's rows; give losses, first gradients and the end state."""
    torch.set_num_threads(1)
    kind = torch.float64 if name in SORTS else torch.float32
    method = method_of(name).to(kind)
    smooth(method)
    distributed.synchronise_batchnorm(method, torch.device("cpu"))
    stepper: nn.Module = method
    if world > 1:
        stepper = distributed.parallel(method)
    optimizer = torch.optim.SGD((p for p in method.parameters() if p.requires_grad), lr=0.02)
    losses, gradients = [], {}
    start = {key: value.clone() for key, value in method.state_dict().items()}
    for step in range(STEPS):
        method.set_mode("train")
        optimizer.zero_grad()
        rows = slice(rank * 8 // world, (rank + 1) * 8 // world)
        views = [view[rows] for view in views_for(method, step)]
        loss, _ = stepper([view.to(kind) if view.is_floating_point() else view for view in views], step / 10)
        loss.backward()
        losses.append(distributed.mean(loss.detach()).item())
        if step == 0:
            gradients = {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
        method.before_update(step / 10)
        optimizer.step()
        method.after_step(step / 10)
    state = method.state_dict()
    moved = {key: state[key] - start[key] for key in state}
    return {"losses": losses, "gradients": gradients, "moved": moved, "state": state}


@cache
def alone(name: str) -> dict[str, Any]:
    """Train in one process; what it gives is read only."""
    return train(name, 1, 0)


def worker(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    distributed.start(torch.device("cpu"))
    for name in METHODS:
        torch.save(train(name, 2, rank), Path(folder) / f"{name}-{rank}.pt")
    rows = torch.arange(3.0).requires_grad_()
    gathered = distributed.gather((rank + 1) * rows)
    ((rank + 2) * gathered * torch.arange(6.0)).sum().backward()
    gather = {
        "values": gathered.detach(),
        "gradient": rows.grad,
        "mean": distributed.mean(torch.tensor(rank)),
    }
    torch.save(gather, Path(folder) / f"gather-{rank}.pt")
    distributed.stop()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two-processes")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(worker, (port, str(folder)), nprocs=2)
    return folder


def assert_near(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    """Compare each tensor by its own largest value.

    What cancels out, as the gradient of a bias before batch normalisation or the difference of two nearly
    equal weights, keeps the rounding of what it was made of: that is measured by the largest value of all.
    """
    assert ours.keys() == theirs.keys()
    scale = max(float(value.abs().max()) for value in theirs.values() if value.is_floating_point())
    for key, value in theirs.items():
        if value.is_floating_point():
            error, size = float((ours[key] - value).abs().max()), float(value.abs().max())
            assert error <= tolerance * size + 1e-6 * scale, (key, error, size, scale)
        else:
            assert torch.equal(ours[key], value), key


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_give_one_processs_gradients(name: str, two: Path) -> None:
    for rank in range(2):
        together = torch.load(two / f"{name}-{rank}.pt", weights_only=True)
        assert together["losses"] == pytest.approx(alone(name)["losses"], rel=1e-3)
        assert_near(together["gradients"], alone(name)["gradients"], ROUNDING)


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_move_the_state_as_one_process_does(name: str, two: Path) -> None:
    moved = alone(name)["moved"]
    both = [torch.load(two / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)]
    torch.testing.assert_close(both[0]["state"], both[1]["state"], rtol=1e-6, atol=1e-7)
    assert_near(both[0]["moved"], moved, 4 * ROUNDING)
    teachers = [key for key in moved if key.startswith("teacher") and moved[key].is_floating_point()]
    assert bool(teachers) == bool(method_of(name).pairs())
    assert not teachers or max(float(moved[key].abs().max()) for key in teachers) > 1e-4


def test_what_is_gathered_is_in_order_and_sends_its_gradients_back(two: Path) -> None:
    for rank in range(2):
        found = torch.load(two / f"gather-{rank}.pt", weights_only=True)
        assert found["values"].tolist() == [0, 1, 2, 0, 2, 4]
        # Process r weighs everything by r + 2: each row gets (2 + 3) times its place's weight.
        expected = 5 * (rank + 1) * torch.arange(3 * rank, 3 * rank + 3.0)
        assert torch.equal(found["gradient"], expected)
        assert found["mean"] == 0.5


def test_alone_nothing_is_gathered_or_synchronised() -> None:
    rows = torch.rand(3, 2)
    assert distributed.gather(rows) is rows
    assert distributed.mean(rows) is rows
    network = backbones.make("test_resnet", image_size=IMAGE_SIZE)
    kinds = [type(module) for module in network.modules()]
    assert [
        type(m) for m in distributed.synchronise_batchnorm(network, torch.device("cpu")).modules()
    ] == kinds


@pytest.mark.parametrize(("batch_size", "accumulate"), [(10, 3), (8, 8), (2, 2)])
def test_a_batch_that_cannot_be_divided_is_named(batch_size: int, accumulate: int) -> None:
    with pytest.raises(UserError, match=f"batch_size={batch_size} must be a multiple of 1 processes"):
        distributed.share_of(batch_size, accumulate)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "labels"),
    [
        ({"name": "simclr", "output_dim": 16}, "none"),
        ({"name": "supcon"}, "folder"),
        ({"name": "pair_triplet", "pairs": "neighbours", "negatives": 3, "k": 3, "skip": 0}, "none"),
    ],
)
def test_the_same_command_under_torchrun_trains_the_same_network(
    method: dict[str, Any], labels: str, photos: Path, tmp_path: Path
) -> None:
    job = {
        "data": {"name": "folder", "root": str(photos), "labels": labels},
        "model": {"name": "test_resnet", "image_size": 32, "stem": "standard"},
        "method": method,
        # Five times as fast, rounding pushes a value over a kink in one seed of three, and the networks part.
        "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.0, "weight_decay": 0.0},
        "epochs": 2,
        # With 8 images per batch, rounding grows a thousandfold in these steps: their statistics are shaky.
        "batch_size": 20,
        "images_per_class": {"supcon": 5, "softmax": 0}.get(method["name"]),
        "precision": "fp32",
        "memory_format": "contiguous",
        "log_every": 1,
        "monitor": {"max_images": 20},
    }
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job))
    pretrain = ["-m", "ssl_retrieval", "pretrain", str(file)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    said = {}
    for name, launcher in (("one", []), ("two", torchrun)):
        command = [sys.executable, *launcher, *pretrain, f"out={tmp_path / name}"]
        done = subprocess.run(
            command, env=ONE_THREAD, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        said[name] = done.stderr
    assert "2 processes" in said["two"]
    # What is said, logged and watched comes from one process.
    assert said["two"].count("training on 40 images") == 1
    one, two = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("one", "two"))
    assert_near(two, one, 1e-3)
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")]
    losses = [[json.loads(line)["loss"] for line in lines] for lines in logs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert len((tmp_path / "two" / "monitor.jsonl").read_text().splitlines()) >= 2

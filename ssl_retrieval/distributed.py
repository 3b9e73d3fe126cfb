"""Several processes as one: starting them, gathering with gradients, batch statistics over all of them.

The convention throughout: each process computes its own loss, the loss of the whole batch is their mean,
and gradients are averaged. With it `gather` and `SyncBatchNorm` give one process's gradients exactly.
"""

import os
import warnings
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightly.utils.dist import GatherLayer
from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from ssl_retrieval.errors import UserError

Value = TypeVar("Value")


def start(device: torch.device) -> torch.device:
    """Join the other processes when ``torchrun`` started this one.

    Args:
        device: What the config asks for.

    Returns:
        The device of this process: with CUDA, the one of its local rank.
    """
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1 or dist.is_initialized():
        return device
    if device.type == "cuda":
        number, num_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= num_gpus:
            raise UserError(
                f"process {number + 1} of this machine has no GPU of its own ({num_gpus} found): start fewer "
                "with --nproc-per-node"
            )
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    # The first process decodes all images and watches retrieval while the others wait.
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=7))
    return device


def stop() -> None:
    """Leave the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    """Count the processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Give this process's number."""
    return dist.get_rank() if dist.is_initialized() else 0


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


def require_same(value: str, what: str) -> None:
    """Refuse to go on when the processes hold different values.

    Raises:
        UserError: They do; named by ``what``.
    """
    if len(set(from_all(value))) > 1:
        raise UserError(f"the processes disagree on {what}: out must lie on a disk that all of them share")


def gather(rows: Tensor) -> Tensor:
    """Put the rows of all processes together, in order of rank, with gradients to all of them.

    Args:
        rows: float [B, …], the same B everywhere.

    Returns:
        [world size · B, …].
    """
    if world_size() == 1:
        return rows
    return torch.cat(GatherLayer.apply(rows.contiguous()))


def from_first(value: Value) -> Value:
    """Let all processes know what the first one decided or found; what the others give is not looked at."""
    if world_size() == 1:
        return value
    found = [value]
    dist.broadcast_object_list(found, src=0)
    return found[0]


def from_all(value: Value) -> list[Value]:
    """Collect what every process has, in order of rank; tensors are best on the CPU."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


@torch.no_grad()
def mean(values: Tensor) -> Tensor:
    """Average a tensor over all processes, without gradient."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world_size()


def parallel(module: nn.Module) -> DistributedDataParallel:
    """Average a module's gradients over all processes.

    Buffers are not sent around: they come from gathered batches. Only without `synchronise_batchnorm` do
    running statistics differ, and the first process's are kept.
    """
    with warnings.catch_warnings():
        # The new name of the argument came with torch 2.13; older versions are supported too.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(module, broadcast_buffers=False)


def share_of(batch_size: int, accumulate: int) -> int:
    """Give the images per process and forward pass.

    Raises:
        UserError: The batch cannot be divided.
    """
    parts = world_size() * accumulate
    if batch_size % parts or batch_size // parts < 2:
        raise UserError(
            f"batch_size={batch_size} must be a multiple of {world_size()} processes × "
            f"accumulate={accumulate}, with at least 2 images for each"
        )
    return batch_size // parts


def synchronise_batchnorm(module: nn.Module, device: torch.device) -> nn.Module:
    """Let batch normalisation see the batches of all processes.

    torch's own layer is for GPUs alone; on the CPU the same is done by `SyncBatchNorm`.
    """
    if world_size() == 1:
        return module
    if device.type == "cuda":
        return convert_sync_batchnorm(module)
    for part in module.modules():
        if isinstance(part, BatchNormAct2d):
            part.__class__ = SyncBatchNormAct2d
        elif type(part) in (nn.BatchNorm1d, nn.BatchNorm2d):
            part.__class__ = SyncBatchNorm
    return module


def _normalise(layer: _BatchNorm, inputs: Tensor) -> Tensor:
    """Normalise by the mean and variance over all processes; float [B, C, …]."""
    axes = [axis for axis in range(inputs.ndim) if axis != 1]
    wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    sums = torch.stack([wide.sum(axes), wide.square().sum(axes)])
    count = wide.numel() // wide.shape[1] * world_size()
    average, square = (gather(sums.unsqueeze(0)).sum(0) / count).unbind(0)
    variance = (square - average.square()).clamp(min=0)
    if layer.track_running_stats:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        assert layer.num_batches_tracked is not None
        with torch.no_grad():
            layer.num_batches_tracked += 1
            share = layer.momentum if layer.momentum is not None else 1 / float(layer.num_batches_tracked)
            layer.running_mean.lerp_(average, share)
            layer.running_var.lerp_(variance * count / (count - 1), share)
    shape = [1, -1, *[1] * (inputs.ndim - 2)]
    normal = (wide - average.view(shape)) * torch.rsqrt(variance + layer.eps).view(shape)
    if layer.weight is not None:
        normal = normal * layer.weight.view(shape)
    if layer.bias is not None:
        normal = normal + layer.bias.view(shape)
    return normal.to(inputs.dtype)


class SyncBatchNorm(_BatchNorm):
    """Batch normalisation over all processes, on any device."""

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.ndim >= 2

    def forward(self, input: Tensor) -> Tensor:
        """Normalise: float [B, C, …]."""
        return _normalise(self, input) if self.training else super().forward(input)


class SyncBatchNormAct2d(BatchNormAct2d):
    """`SyncBatchNorm` in the form of timm's layer with its activation."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and activate: float [B, C, H, W]."""
        return self.act(self.drop(_normalise(self, x))) if self.training else super().forward(x)

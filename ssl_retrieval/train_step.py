"""One step of training: forward, backward, update, teacher; nothing in it waits for the device."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssl_retrieval import compiling, distributed, optim
from ssl_retrieval.anchor import Anchored
from ssl_retrieval.augment import View
from ssl_retrieval.defaults import given
from ssl_retrieval.methods.base import BaseMethod
from ssl_retrieval.precision import Runtime
from ssl_retrieval.train_config import PretrainConfig


class Stepper:
    """Takes the steps of a run.

    Attributes:
        lr: Learning rate of the last step.
        weight_decay: Weight decay of the last step.
    """

    def __init__(
        self,
        cfg: PretrainConfig,
        method: BaseMethod,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        runtime: Runtime,
        device: torch.device,
        start: nn.Module | None = None,
    ) -> None:
        """Lay out the weights, compile what is to be compiled, join the processes.

        Args:
            cfg: The run's settled config.
            method: On the device.
            optimizer: Over its parameters.
            scaler: For fp16.
            runtime: Precision, layout and compilation.
            device: Where the method is.
            start: The network that training began with, for the anchors; None = there are none.
        """
        self.cfg, self.method, self.optimizer, self.scaler = cfg, method, optimizer, scaler
        self.runtime, self.device = runtime, device
        self.lr = self.weight_decay = 0.0
        module: nn.Module = method
        networks = list(method.networks().values())
        if start is not None and cfg.anchor.has_loss:
            module = Anchored(method, start, cfg.anchor, cfg.model.image_size)
            networks.append(start)
        runtime.place(module)
        if runtime.compile in ("all", "graphs"):
            for network in networks:
                compile_network(network, graphs=runtime.compile == "graphs")
        self.module = module if distributed.world_size() == 1 else distributed.parallel(module)

    def run(self, views: Iterator[list[Tensor]], step: int, total: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Take one step.

        Args:
            views: Gives the views of the next part of the batch.
            step: Steps done before.
            total: Steps of the whole run.

        Returns:
            The mean loss and what the method logs, as tensors that may still be computed.
        """
        cfg, progress = self.cfg, step / total
        self.lr, self.weight_decay = optim.schedule(cfg.optimizer, self.optimizer, progress)
        self.optimizer.zero_grad(set_to_none=True)
        mean_loss = torch.zeros((), device=self.device)
        logs: dict[str, Tensor] = {}
        for part in range(cfg.accumulate):
            self._seed_dropout(step, part)
            waits = part + 1 < cfg.accumulate and isinstance(self.module, DistributedDataParallel)
            with self.module.no_sync() if waits else nullcontext():  # type: ignore[operator]
                loss, logs = forward(self.module, self.method, next(views), cfg, self.runtime, progress)
                self.scaler.scale(loss / cfg.accumulate).backward()
            mean_loss += loss.detach() / cfg.accumulate
        self.scaler.unscale_(self.optimizer)
        optim.clip_gradients(cfg.optimizer, self.method)
        self.method.before_update(progress)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.method.after_step(progress)
        return distributed.mean(mean_loss), logs

    def _seed_dropout(self, step: int, part: int) -> None:
        # Dropout and stochastic depth draw from torch's generator: seeded by the step, a resume repeats it.
        place = (step * distributed.world_size() + distributed.rank()) * self.cfg.accumulate + part
        torch.manual_seed(self.cfg.seed * 1_000_003 + place)


def forward(
    module: nn.Module,
    method: BaseMethod,
    views: list[Tensor],
    cfg: PretrainConfig,
    runtime: Runtime,
    progress: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute a loss as training does.

    Args:
        module: The method, or what anchors and several processes have wrapped around it.
        method: The method.
        views: Of a batch.
        cfg: The run's config.
        runtime: Precision.
        progress: Share of the training done.
    """
    method.set_mode(cfg.model.batchnorm)
    with runtime.autocast(views[0].device):
        loss, logs = module(views, progress)
    return loss, logs


def compile_network(network: nn.Module, graphs: bool) -> None:
    """Compile how a timm network computes its last map; its weights and their names stay as they are.

    Args:
        network: From `backbones.make`.
        graphs: Replay the kernels as CUDA graphs.
    """
    plain: Callable[[Tensor], Tensor] = network.forward_features  # type: ignore[assignment]
    # Sizes are few, large views and small ones, and kernels made for one size are faster.
    mode = "reduce-overhead" if graphs else None
    fast = compiling.compiled(plain, dynamic=False, mode=mode)

    def copied(images: Tensor) -> Tensor:
        # The next replay writes where this one's result stands; a ViT's pooled token is but a part of that.
        return fast(images).clone()

    network.forward_features = copied if graphs else fast  # type: ignore[assignment]


def view_pixels(cfg: PretrainConfig, method: BaseMethod, num_images: int) -> tuple[float, bool]:
    """Count the pixels of all views of a run, and tell whether they are more than crops."""
    views = [view for view in method.views(cfg.model.image_size) if isinstance(view, View)]
    per_image = sum(view.size**2 for view in views)
    is_costly = any(view.augment.jitter > 0 or view.augment.blur > 0 for view in views)
    return float(per_image * num_images * given(cfg.epochs)), is_costly

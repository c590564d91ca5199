"""The processes of a run: alone, or under torchrun with DDP or FSDP2."""

from __future__ import annotations

import os
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

PARALLEL = ("ddp", "fsdp")
PATIENCE = timedelta(hours=24)  # while one worker clusters, the others wait


class Workers:
    """This process among its peers.

    Args:
        parallel: ``"ddp"`` (every worker holds the model) or ``"fsdp"`` (each holds a part of it).
        device: of the model; by default the worker's own GPU where there is one.
    """

    def __init__(self, parallel: str = "ddp", device: str | None = None):
        if parallel not in PARALLEL:
            raise ValueError(f"parallel must be one of {', '.join(PARALLEL)}; got {parallel!r}")
        on = dist.is_initialized()
        self.rank, self.count = (dist.get_rank(), dist.get_world_size()) if on else (0, 1)
        local = int(os.environ.get("LOCAL_RANK", 0))
        self.device = torch.device(device or (f"cuda:{local}" if torch.cuda.is_available() else "cpu"))
        self.parallel = parallel if on else None

    @property
    def first(self) -> bool:
        """Whether this is the worker that writes."""
        return self.rank == 0

    def spread(self, model: nn.Module) -> nn.Module:
        """The model on its device, ready to be trained by all workers together; they average gradients."""
        model = model.to(self.device)
        if self.parallel == "fsdp":
            from torch.distributed.fsdp import fully_shard

            for layer in model.hubert.encoder.layers:
                fully_shard(layer)
            return fully_shard(model)
        if self.parallel == "ddp":
            devices = [self.device.index] if self.device.type == "cuda" else None
            # a layer that is dropped has no gradient
            unused = model.hubert.encoder.layer_drop > 0
            return DistributedDataParallel(model, device_ids=devices, find_unused_parameters=unused)
        return model

    @contextmanager
    def averaging(self, model: nn.Module, last: bool):
        """Around a backward pass: gradients are averaged after the ``last`` micro-batch of an update alone."""
        if self.parallel == "ddp" and not last:
            with model.no_sync():
                yield
            return
        if self.parallel == "fsdp":
            model.set_requires_gradient_sync(last)
        yield

    def sum(self, *values: float) -> list[float]:
        """Each value summed over the workers, in float64."""
        total = torch.tensor(values, dtype=torch.float64)
        if self.count > 1:
            dist.all_reduce(total)
        return total.tolist()

    def wait(self) -> None:
        """Until all are here."""
        self.sum(0.0)

    def any(self, value: bool) -> bool:
        return self.sum(float(value))[0] > 0


@contextmanager
def joined():
    """Joins the other processes when started by ``torchrun``; a process alone stays alone."""
    if "WORLD_SIZE" not in os.environ or not dist.is_available():
        yield
        return
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    # numbers that are already on the CPU travel by gloo
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def plain(model: nn.Module) -> nn.Module:
    """The model inside what ``spread`` made."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be spread over workers, on the CPU; all of them must ask for it."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def share(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, spread as ``like`` is; its dtype stays."""
    if isinstance(like, DTensor) and tensor.ndim:
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
    return tensor

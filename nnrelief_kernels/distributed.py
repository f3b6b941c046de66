"""Several processes that prune one model together: what they say to each other, nothing where there is only one."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def in_use() -> bool:
    """Whether torch.distributed is initialised."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank() -> int:
    """This process's number; 0 where it is alone."""
    return torch.distributed.get_rank() if in_use() else 0


def world() -> int:
    """How many processes there are."""
    return torch.distributed.get_world_size() if in_use() else 1


@contextlib.contextmanager
def launched() -> Iterator[None]:
    """The process group of the processes that torchrun started; nothing where it did not start this one."""
    if not (torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()) or in_use():
        yield
        return
    # the others wait while rank 0 trains
    torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(days=7))
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def gather(value: T) -> list[T]:
    """What every process passes, in the order of their ranks."""
    if not in_use():
        return [value]
    found: list[Any] = [None] * world()
    torch.distributed.all_gather_object(found, value)
    return found


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with rank 0's."""
    for tensor in tensors:
        torch.distributed.broadcast(tensor, 0)


def on_first(function: Callable[[], T]) -> T:
    """Call `function` on rank 0 only; what it returns or raises there, every rank returns or raises."""
    if not in_use():
        return function()
    answer: list[Any] = [None, None]
    if rank() == 0:
        try:
            answer = [function(), None]
        except Exception as error:  # whatever it is, no rank may be left waiting
            answer = [None, error]
    torch.distributed.broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    result: T = answer[0]
    return result

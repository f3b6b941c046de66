"""Files that are whole or absent, and tensors in them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from torch import Tensor


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file that takes its place at `path` when the block ends well; an error leaves what was there before.

    A process that is killed while it writes leaves ``.NAME.partial`` behind, which the next write replaces.

    Raises:
        OSError: the folder cannot be made or written, or the disk is full; the message names `path` and the cause.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error
        raise


def check_writable(folder: str | Path) -> None:
    """Say that a folder cannot be written before the work whose results it is for.

    Raises:
        OSError: as `atomic_write`.
    """
    probe = Path(folder) / ".writable"
    with atomic_write(probe):
        pass
    probe.unlink()


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, atomically.

    Raises:
        OSError: as `atomic_write`.
        ValueError: safetensors is not installed.
    """
    data = require_safetensors().save({name: tensor.contiguous() for name, tensor in tensors.items()})
    with atomic_write(path) as file:
        file.write(data)


def read_tensors(data: bytes, what: str) -> dict[str, Tensor]:
    """The tensors in the bytes of a safetensors file called `what`, on the CPU.

    Raises:
        ValueError: the bytes are not safetensors, or safetensors is not installed.
    """
    safetensors = require_safetensors()
    try:
        return cast("dict[str, Tensor]", safetensors.load(data))
    except Exception as error:  # safetensors raises types of its own
        raise ValueError(f"{what} is not a safetensors file: {error}") from error


def require_safetensors() -> Any:
    """The module safetensors.torch; a ValueError says how to install what is missing."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise ValueError("tensors are stored as safetensors: pip install 'nnrelief-kernels[safetensors]'") from error
    return safetensors.torch

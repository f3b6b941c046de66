"""Progress bars where tqdm is installed and someone is looking."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar, cast

T = TypeVar("T")


def progress(items: Iterable[T], description: str, show: bool = True) -> Iterable[T]:
    """`items` under a bar on standard error; silent without tqdm, off a terminal, or with ``show=False``."""
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return cast(Iterable[T], tqdm(items, desc=description, leave=False, dynamic_ncols=True, disable=None if show else True))

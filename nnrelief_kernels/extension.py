"""The compiled library: loaded once; a failure is kept as one clear cause."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent
LIBRARY = "_C.abi3.so"
BUILD_NOTE = "_build.txt"


@cache
def unavailable() -> str | None:
    """Loads the library; why it cannot be used, or None."""
    return _load(FOLDER)


def note(folder: Path = FOLDER) -> str:
    """What the build said of a part that it left out."""
    kept = folder / BUILD_NOTE
    return " ".join(kept.read_text().split()) if kept.exists() else "this installation was made without it"


def _load(folder: Path) -> str | None:
    library = folder / LIBRARY
    if not library.exists():
        return f"the compiled extension is missing: {note(folder)}"
    try:
        ops: Any = torch.ops  # load_library carries no types
        ops.load_library(library)
        torch.ops.nnrelief.level()
        torch.ops.nnrelief.cuda_architectures()
    except (OSError, RuntimeError, AttributeError) as error:  # the last: of another version
        return f"the compiled extension {library} failed to load: {str(error).splitlines()[0]}"
    return None

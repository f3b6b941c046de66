"""The compiled library: loaded once; a failure is kept as one clear cause."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

LIBRARY = "_C.abi3.so"
BUILD_NOTE = "_build.txt"


@cache
def unavailable() -> str | None:
    """Loads the library; why it cannot be used, or None."""
    return _load(Path(__file__).parent)


def _load(folder: Path) -> str | None:
    library, note = folder / LIBRARY, folder / BUILD_NOTE
    if not library.exists():
        cause = " ".join(note.read_text().split()) if note.exists() else "this installation was made without it"
        return f"the compiled extension is missing: {cause}"
    try:
        ops: Any = torch.ops  # load_library carries no types
        ops.load_library(library)
        torch.ops.nnrelief_cpu.level()
    except (OSError, RuntimeError) as error:
        return f"the compiled extension {library} failed to load: {str(error).splitlines()[0]}"
    return None

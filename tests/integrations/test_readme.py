"""The README's examples run as they stand."""

import re
from pathlib import Path

import pytest
import torch

from nnrelief_kernels import integrations

README = (Path(__file__).parents[2] / "README.md").read_text()
SECTION = README.split("## Other pruning tools\n")[1].split("\n## ")[0]
START, *TOOLS = re.split(r"\n### ", SECTION)
LONGEST = 15


def code(text):
    """The one block of Python in a part of the section."""
    (found,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    return found


def zeros(module):
    return float((module.weight == 0).float().mean())


NEEDS = {"Torch-Pruning": "torch_pruning", "fasterai": "fasterai", "NVIDIA ModelOpt": "modelopt"}
DONE = {
    "torch.nn.utils.prune": lambda n: zeros(n["model"][6]) > 0.1 and zeros(n["model"][3]) > 0.1,
    "torch.ao.pruning": lambda n: zeros(n["model"][6]) > 0.2 and "mask" in n["state"]["state"]["3.weight"],
    "Torch-Pruning": lambda n: n["removed"] and n["model"][3].out_channels < 24,
    "fasterai": lambda n: zeros(n["model"][3]) > 0.4 and zeros(n["model"][6]) > 0.1,
    "NVIDIA ModelOpt": lambda n: n["channels"].sort().values.tolist() == list(range(16)) and n["state"]["3"]["samples"] == 200,
    "Continual Prune-and-Select": lambda n: 0 < n["shared"].sum() < n["shared"].numel(),
    "Language models": lambda n: (
        n["per_row"].float().mean() == 0.5 and zeros(n["model"][6]) >= 0.5 and "6.weight" in n["dense"]
    ),
}
"""What each example must have done, by its heading."""


@pytest.mark.parametrize("tool", DONE)
def test_examples(tool):
    if tool in NEEDS:
        pytest.importorskip(NEEDS[tool], reason=f"{tool} is not installed: make test-integrations")
    (part,) = [text for text in TOOLS if text.startswith(f"{tool}\n")]
    assert len(code(part).strip().splitlines()) <= LONGEST
    torch.manual_seed(0)
    names = {}
    exec(code(START), names)
    exec(code(part), names)
    assert DONE[tool](names)
    assert names["model"](names["batches"][0]).shape == (50, 10)


def test_every_example_and_every_adapter_is_covered():
    assert [text.splitlines()[0] for text in TOOLS] == list(DONE)
    table = [line.split("|")[1].strip() for line in START.splitlines() if line.startswith("| ")]
    assert sorted(name.lower() for name in table[2:]) == sorted(tool.lower() for tool in DONE)
    modules = {path.stem for path in Path(integrations.__file__).parent.glob("*.py")} - {"__init__", "calibration"}
    assert all(f"integrations.{module}" in SECTION for module in modules)

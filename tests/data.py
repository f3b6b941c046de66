"""The real data and published weights, where this machine has them; a test that needs them skips elsewhere and says so."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from nnrelief_kernels.paper.models import LeNet5

FOLDER = Path(os.environ.get("NNRELIEF_DATA", Path(__file__).parents[2] / "shared" / "data"))

needs_data = pytest.mark.skipif(
    not (FOLDER / "mnist").is_dir(), reason=f"no data in {FOLDER}: set NNRELIEF_DATA to a folder with mnist/ and weights/"
)


def mnist_test():
    """The 10,000 test images (N, 1, 28, 28) in [0, 1) as the Caffe LeNets take them, and their labels."""

    def read(name, header):
        return np.frombuffer(gzip.decompress((FOLDER / "mnist" / name).read_bytes()), np.uint8, offset=header)

    images = torch.tensor(read("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28))
    return images.float() / 256, torch.tensor(read("t10k-labels-idx1-ubyte.gz", 8).astype(np.int64))


def caffe_lenet5():
    """The network of the published Caffe weights."""
    return LeNet5(conv_relu=False)


def load_caffe(model, name):
    """Load the published Caffe weights `name` into a LeNet of the package."""
    renamed = {"ip1": "fc1", "ip2": "fc2", "ip3": "fc3"}
    with np.load(FOLDER / "weights" / "lenet_mnist" / f"{name}.npz") as file:
        parts = {tuple(key.split(".")): torch.tensor(file[key]) for key in file}
    model.load_state_dict({f"{renamed.get(layer, layer)}.{kind}": value for (layer, kind), value in parts.items()})
    return model.eval()

"""The backends a test runs on: every one of the registry, those that are not here as skips that say why."""

import pytest

from nnrelief_kernels.backends import ORDER, get


def backend_parameters():
    return [
        pytest.param(name, marks=pytest.mark.skipif(why is not None, reason=f"{name}: {why}"))
        for name in ORDER
        for why in [get(name).unavailable()]
    ]


every_backend = pytest.mark.parametrize("backend", backend_parameters())

"""Fixtures of the whole suite."""

import pytest
import torch

import nnrelief_kernels


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace):
    doctest_namespace.update({name: getattr(nnrelief_kernels, name) for name in nnrelief_kernels.__all__}, torch=torch)

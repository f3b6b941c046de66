"""Fused scoring kernels and a pruning loop for *Neural network relief* (Dekhovich et al. 2024)."""

from .scoring import explain, score_conv, score_linear
from .selection import keep_mask, keep_rank, target_sparsity

__all__ = ["explain", "keep_mask", "keep_rank", "score_conv", "score_linear", "target_sparsity"]

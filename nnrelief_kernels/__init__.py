"""Fused scoring kernels and a pruning loop for *Neural network relief* (Dekhovich et al. 2024)."""

from .accumulate import ConvAccumulator, LinearAccumulator
from .authors import residual_masks, silent_masks
from .bounds import alpha_for_bound, certify, layer_bounds
from .collect import Collector
from .dead import find_dead, remove_dead
from .latency import latency
from .magnitude import magnitude_masks
from .masks import apply_masks, fold_masks, get_masks, load_masks, save_masks
from .measure import jaccard, measure
from .pruning import prune, prune_iteratively
from .scoring import explain, score_conv, score_linear
from .selection import keep_mask, keep_rank, target_sparsity
from .shrink import shrink

__all__ = [
    "Collector",
    "ConvAccumulator",
    "LinearAccumulator",
    "alpha_for_bound",
    "apply_masks",
    "certify",
    "explain",
    "find_dead",
    "fold_masks",
    "get_masks",
    "jaccard",
    "keep_mask",
    "keep_rank",
    "latency",
    "layer_bounds",
    "load_masks",
    "magnitude_masks",
    "measure",
    "prune",
    "prune_iteratively",
    "remove_dead",
    "residual_masks",
    "save_masks",
    "score_conv",
    "score_linear",
    "shrink",
    "silent_masks",
    "target_sparsity",
]

"""Metrics of encoders and click models (section 6.1.4): exact, and honest about what they leave out."""

from tfmm.metrics.alignment import alignment, uniformity
from tfmm.metrics.auc import AUC, auc
from tfmm.metrics.binned_auc import BinnedAUC
from tfmm.metrics.confidence import MIN_GROUPS, Interval, mean_interval, user_bootstrap
from tfmm.metrics.gauc import GAUC, GAUCResult, UserAUC, gauc, user_aucs
from tfmm.metrics.groups import GroupComparison, compare_groups, item_frequencies, item_frequency_groups
from tfmm.metrics.log_loss import (
    Calibration,
    LogLoss,
    NormalizedEntropy,
    calibration,
    log_loss,
    normalized_entropy,
)
from tfmm.metrics.top_n_accuracy import TopNAccuracy, positive_ranks, top_n_accuracy

__all__ = [
    "AUC",
    "GAUC",
    "MIN_GROUPS",
    "BinnedAUC",
    "Calibration",
    "GAUCResult",
    "GroupComparison",
    "Interval",
    "LogLoss",
    "NormalizedEntropy",
    "TopNAccuracy",
    "UserAUC",
    "alignment",
    "auc",
    "calibration",
    "compare_groups",
    "gauc",
    "item_frequencies",
    "item_frequency_groups",
    "log_loss",
    "mean_interval",
    "normalized_entropy",
    "positive_ranks",
    "top_n_accuracy",
    "uniformity",
    "user_aucs",
    "user_bootstrap",
]

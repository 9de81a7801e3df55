"""Metrics of encoders and click models (section 6.1.4): exact, and honest about what they leave out."""

from tfmm.metrics.auc import auc
from tfmm.metrics.gauc import GAUCResult, UserAUC, gauc, user_aucs
from tfmm.metrics.log_loss import calibration, log_loss, normalized_entropy
from tfmm.metrics.top_n_accuracy import positive_ranks, top_n_accuracy

__all__ = [
    "GAUCResult",
    "UserAUC",
    "auc",
    "calibration",
    "gauc",
    "log_loss",
    "normalized_entropy",
    "positive_ranks",
    "top_n_accuracy",
    "user_aucs",
]

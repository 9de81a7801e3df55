"""Losses of semantic-aware contrastive pre-training (section 3.3)."""

from tfmm.losses.info_nce import InfoNCE, info_nce
from tfmm.losses.triplet import TripletLoss, triplet_loss

__all__ = ["InfoNCE", "TripletLoss", "info_nce", "triplet_loss"]

"""Keras layers that bring multimodal item vectors into a click model, and the functions under them."""

from tfmm.layers.din import Dice, DINAttention, masked_softmax
from tfmm.layers.frozen_embedding import FrozenEmbedding
from tfmm.layers.make import MAKEBlock
from tfmm.layers.similarity import cosine_similarity, unit_vectors
from tfmm.layers.simtier import SimTierLayer, tier_counts, tier_index

__all__ = [
    "DINAttention",
    "Dice",
    "FrozenEmbedding",
    "MAKEBlock",
    "SimTierLayer",
    "cosine_similarity",
    "masked_softmax",
    "tier_counts",
    "tier_index",
    "unit_vectors",
]

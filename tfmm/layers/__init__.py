"""Keras layers that bring multimodal item vectors into a click model, and the functions under them."""

from tfmm.layers.behavior_search import BehaviorSearch, gather_behaviors
from tfmm.layers.din import Dice, DINAttention, masked_softmax
from tfmm.layers.frozen_embedding import FrozenEmbedding
from tfmm.layers.fusion import SimScore, VectorFusion
from tfmm.layers.make import MAKEBlock
from tfmm.layers.semantic_attention import SemanticTargetAttention
from tfmm.layers.semantic_id import SemanticId, fit_codebooks, residual_codes
from tfmm.layers.similarity import cosine_similarity, unit_vectors
from tfmm.layers.simtier import SimTierLayer, tier_counts, tier_index

__all__ = [
    "BehaviorSearch",
    "DINAttention",
    "Dice",
    "FrozenEmbedding",
    "MAKEBlock",
    "SemanticId",
    "SemanticTargetAttention",
    "SimScore",
    "SimTierLayer",
    "VectorFusion",
    "cosine_similarity",
    "fit_codebooks",
    "gather_behaviors",
    "masked_softmax",
    "residual_codes",
    "tier_counts",
    "tier_index",
    "unit_vectors",
]

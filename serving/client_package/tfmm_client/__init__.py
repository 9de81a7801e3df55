"""Ranking client of TensorFlow Serving and of tfmm's server, over gRPC or REST, without TensorFlow.

from tfmm_client import RankingClient

with RankingClient(["ranker-0:8500", "ranker-1:8500"]) as client:
    scores = client.rank(
        user={"user_id": 7, "behavior_item_ids": [3, 5], "behavior_categories": [1, 1]},
        candidates={"item_id": [11, 12], "category": [1, 2]},
    )
    scores = client.rank({"user_id": 7, "behavior_item_ids": [3, 5]}, {"item_id": [11, 12]})  # categories as indexed
"""

from tfmm_client.access import Access, read_token
from tfmm_client.asynchronous import AsyncRankingClient
from tfmm_client.client import RankingClient
from tfmm_client.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    PredictError,
    ResourceExhausted,
    ServerError,
    Unauthenticated,
    Unavailable,
)
from tfmm_client.replicas import Retry

__all__ = [
    "Access",
    "AsyncRankingClient",
    "DeadlineExceeded",
    "InvalidRequest",
    "NotFound",
    "PermissionDenied",
    "PredictError",
    "RankingClient",
    "ResourceExhausted",
    "Retry",
    "ServerError",
    "Unauthenticated",
    "Unavailable",
    "read_token",
]

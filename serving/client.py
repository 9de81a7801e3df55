"""The ranking client, which is a package of its own: `tfmm_client`."""

from __future__ import annotations

from tfmm_client import PredictError, RankingClient
from tfmm_client.inputs import Input, Inputs, Value, as_tensor, rank_request

__all__ = ["Input", "Inputs", "PredictError", "RankingClient", "Value", "as_tensor", "rank_request"]

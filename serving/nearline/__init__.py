"""The near-line trainer: it goes on from a blessed click model over impressions as they were served, and pushes."""

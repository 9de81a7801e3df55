"""A simulated A/B: a week of the marketplace through the running system, with ids alone and with item vectors."""

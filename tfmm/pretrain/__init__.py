"""Semantic-aware contrastive pre-training of item encoders (section 3)."""

"""What encoders of texts share: the form of a text, and augmentation by leaving tokens out."""

from __future__ import annotations

import tensorflow as tf

from tfmm.pretrain.content_form import NFKC_CASEFOLD, ContentForm
from tfmm.pretrain.encoder import Encoder, Features


class HashedTextEncoder(Encoder):
    """UTF-8 in; the model takes hashed tokens, int32 [B, ...], 0 where padded, and their weights, float32 [B, ...]."""

    @property
    def form(self) -> ContentForm:
        return ContentForm(NFKC_CASEFOLD, self.config.max_pixels)

    def augment(self, features: Features, seed: tf.Tensor) -> Features:
        if not self.config.augment:
            return features
        tokens, weights = features
        kept = tf.random.stateless_uniform(tf.shape(weights), seed) >= self.config.token_dropout
        return tokens, weights * tf.cast(kept, tf.float32)

"""What encoders of pictures share: reading files to squares of pixels, and augmentation."""

from __future__ import annotations

import tensorflow as tf

from tfmm.pretrain import augmentation, images
from tfmm.pretrain.encoder import Encoder, Features


class PictureEncoder(Encoder):
    """PNG or JPEG in; the model takes float32 [B, S, S, 3], one minus the color in [0, 1], so that padding is white."""

    @property
    def image_size(self) -> int:
        """S, pixels a side."""
        return self.config.image_size

    def prepare(self, contents: tf.Tensor) -> tuple[Features, tf.Tensor]:
        pixels, valid = images.decode_images(contents, self.image_size)
        return (pixels,), valid

    def finish(self, prepared: Features) -> Features:
        return (tf.cast(prepared[0], tf.float32) / 255.0,)

    def augment(self, features: Features, seed: tf.Tensor) -> Features:
        pixels = images.augment_images(features[0], seed) if self.config.augment else features[0]
        return (augmentation.vary(pixels, seed, self.config) if self.config.by_keras_cv else pixels,)

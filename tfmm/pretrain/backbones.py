"""Encoders of pictures whose net is somebody else's: keras-cv's backbones, CLIP's image tower, a model of a file."""

from __future__ import annotations

import dataclasses
import typing

import keras

from tfmm.config import SCLConfig
from tfmm.modalities import KERAS_FILE
from tfmm.pretrain import weights_file
from tfmm.pretrain.encoder import unit
from tfmm.pretrain.keras_cv_import import load_keras_cv
from tfmm.pretrain.normalization import GlobalBatchNormalization
from tfmm.pretrain.picture_encoder import PictureEncoder
from tfmm.scl_config import BACKBONES
from tfmm.training import replicas

Channels = tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Net:
    """A net of keras-cv.

    Attributes:
        make: keras-cv's models, pixels a side -> the net: float [B, S, S, 3] -> [B, D], [B, T, D] or [B, h, w, D].
        mean, std: of colors in [0, 1], that the net's weights were trained with.
    """

    make: typing.Callable[[typing.Any, int], keras.Model]
    mean: Channels = (0.0, 0.0, 0.0)
    std: Channels = (1.0, 1.0, 1.0)


def resnet(blocks: list[int], block_type: str) -> typing.Callable[[typing.Any, int], keras.Model]:
    """Returns what makes a ResNet of version 2, of so many blocks a stage, each of twice the channels: 64, 128 ..."""

    def make(models: typing.Any, size: int) -> keras.Model:
        return models.ResNetV2Backbone(
            stackwise_filters=[64 * 2**stage for stage in range(len(blocks))],
            stackwise_blocks=blocks,
            stackwise_strides=[1 if stage == 0 else 2 for stage in range(len(blocks))],
            include_rescaling=False,
            input_shape=(size, size, 3),
            block_type=block_type,
        )

    return make


def _vit_b16(models: typing.Any, size: int) -> keras.Model:
    """Its windows are 14 patches a side: at 224 pixels the whole picture. Mean and deviation are in its graph."""
    return models.ViTDetBackbone(include_rescaling=False, input_shape=(size, size, 3))


def _clip_vit_b16(models: typing.Any, size: int) -> keras.Model:
    """The image tower of CLIP; keras-cv's class of both towers asks for keras-nlp, which needs another TensorFlow."""
    tower = models.feature_extractor.CLIPImageEncoder(
        input_resolution=size, patch_size=16, width=768, num_layers=12, heads=12, output_dim=512, name="image_encoder"
    )
    tower.build((None, size, size, 3))
    return tower


NETS: dict[str, Net] = {
    "resnet18_v2": Net(resnet([2, 2, 2, 2], "basic_block")),
    "resnet50_v2": Net(resnet([3, 4, 6, 3], "block")),
    "vit_b16": Net(_vit_b16),
    "clip_vit_b16": Net(
        _clip_vit_b16, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    ),
}


class BackboneEncoder(PictureEncoder):
    """A net of keras-cv, pooled, and a dense layer to D; a frozen one gives the net's own values.

    `weights`, where there are any, are the net's; the dense layer starts fresh.
    """

    def build_model(self) -> keras.Model:
        net = NETS[self.config.encoder]
        return _with_head(self.config, self.build_net(), self.image_size, net.mean, net.std)

    def build_net(self) -> keras.Model:
        """Returns the net with the weights of the file, or else with seeded ones."""
        keras.utils.set_random_seed(self.config.seed)  # keras-cv's layers have no seeds of their own
        models = load_keras_cv().models
        net = NETS[self.config.encoder].make(models, self.image_size)
        if self.config.weights:
            weights_file.load(net, self.config.weights, self.config.encoder)
        return _of_all_replicas(net)

    def settings_of_vectors(self) -> dict[str, typing.Any]:
        net = NETS[self.config.encoder]
        return {"encoder": self.config.encoder, "image_size": self.image_size, "mean": net.mean, "std": net.std}


class KerasFileEncoder(PictureEncoder):
    """A Keras model of a user's own, read from a `.keras` file, pooled, and a dense layer to D; see `Modality`."""

    @property
    def image_size(self) -> int:
        return self._size

    def build_model(self) -> keras.Model:
        net = load_net(self.config.encoder)
        self._size: int = net.input_shape[1]
        self._net_config = net.to_json()
        return _with_head(self.config, _of_all_replicas(net), self._size, *self._mean_and_std())

    def _mean_and_std(self) -> tuple[Channels, Channels]:
        return self.config.pixel_mean or (0.0, 0.0, 0.0), self.config.pixel_std or (1.0, 1.0, 1.0)

    def settings_of_vectors(self) -> dict[str, typing.Any]:
        mean, std = self._mean_and_std()
        return {"net": self._net_config, "mean": mean, "std": std}


def load_net(path: str) -> keras.Model:
    """Returns the model of a `.keras` file.

    Raises:
        ValueError: it cannot be loaded, or is no model of one picture.
    """
    try:
        net = keras.models.load_model(path, compile=False)
    except Exception as error:  # Keras's own, zipfile's, h5py's, and those of a user's layers
        raise ValueError(
            f"`encoder` must name a Keras model that loads. Received: {path} ({type(error).__name__}: {error}). Layers "
            "of your own must be registered by keras.saving and imported; or name module:callable."
        ) from error
    shape = getattr(net, "input_shape", None)
    is_square = isinstance(shape, tuple) and len(shape) == 4 and shape[1] == shape[2] and shape[1] and shape[3] == 3
    if not is_square:
        raise ValueError(
            f"`encoder` must name a Keras model of one input [B, S, S, 3], colors in [0, 1]. Received: {path} with the "
            f"input {shape}."
        )
    return net


def make(config: SCLConfig) -> PictureEncoder:
    """Returns the encoder that `config.encoder` names, one of `BACKBONES` or a `.keras` file."""
    kind = BackboneEncoder if config.encoder in BACKBONES else KerasFileEncoder
    return kind(config)


def is_named(encoder: str) -> bool:
    """Returns whether a name is that of an encoder of this file."""
    return encoder in BACKBONES or encoder.endswith(KERAS_FILE)


def _with_head(config: SCLConfig, net: keras.Model, size: int, mean: Channels, std: Channels) -> keras.Model:
    pixels = keras.Input((size, size, 3), name="pixels")
    # Pixels come as one minus the color: (color - mean) / std.
    colors = keras.layers.Rescaling(
        [-1.0 / s for s in std], [(1.0 - m) / s for m, s in zip(mean, std, strict=True)], name="colors"
    )(pixels)
    values = net(colors)
    pooling = {3: keras.layers.GlobalAveragePooling1D, 4: keras.layers.GlobalAveragePooling2D}
    if len(values.shape) in pooling:
        values = pooling[len(values.shape)](name="pooled")(values)
    if not config.frozen:
        initializer = keras.initializers.GlorotUniform(config.seed)
        values = keras.layers.Dense(config.dim, kernel_initializer=initializer, name="projection")(values)
    return keras.Model([pixels], unit(values), name="image_encoder")


def _of_all_replicas(net: keras.Model) -> keras.Model:
    """Returns a net whose batch normalization takes its statistics over all replicas; on one device, itself."""
    if replicas.count() == 1 or not any(_is_batch_norm(layer) for layer in net._flatten_layers()):
        return net

    def of_all(layer: keras.layers.Layer) -> keras.layers.Layer:
        kind = GlobalBatchNormalization if _is_batch_norm(layer) else type(layer)
        return kind.from_config(layer.get_config())

    result = keras.models.clone_model(net, clone_function=of_all)
    result.set_weights(net.get_weights())
    return result


def _is_batch_norm(layer: keras.layers.Layer) -> bool:
    return type(layer) is keras.layers.BatchNormalization

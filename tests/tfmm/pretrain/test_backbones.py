"""Encoders of pictures by name: keras-cv's nets, CLIP's image tower, a Keras model of a file; and their weights."""

import dataclasses
import shutil
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmm import runs, saved_model
from tfmm.config import RunConfig, SCLConfig, from_dict, to_dict
from tfmm.modalities import Modality
from tfmm.pretrain import backbones, train, weights_file
from tfmm.pretrain.encoders import make_encoder
from tfmm.scl_config import BACKBONES

RESNET = SCLConfig(modality="photo", encoder="resnet18_v2", image_size=32, dim=8)


def png(color, size=40):
    return tf.io.encode_png(tf.fill([size, size, 3], tf.constant(color, tf.uint8))).numpy()


@pytest.fixture(scope="module", autouse=True)
def short_resnets():
    """The same nets of fewer blocks; the tests of all names, marked slow, run them whole."""
    whole = dict(backbones.NETS)
    backbones.NETS["resnet18_v2"] = backbones.Net(backbones.resnet([2, 2], "basic_block"))
    backbones.NETS["resnet50_v2"] = backbones.Net(backbones.resnet([2, 2], "block"))
    yield whole
    backbones.NETS.update(whole)


@pytest.fixture(scope="module")
def resnet_weights(tmp_path_factory):
    """A file of a ResNet's weights that no seed gives, and the net that wrote it."""
    net = make_encoder(dataclasses.replace(RESNET, seed=99)).build_net()
    rng = np.random.default_rng(5)
    net.set_weights([w + rng.uniform(0.01, 0.02, w.shape).astype("float32") for w in net.get_weights()])
    path = tmp_path_factory.mktemp("weights") / "resnet.weights.h5"
    net.save_weights(path)
    return str(path), net


def require_unit_vectors(encoder, folder):
    contents = [png(10), png(200), b"no picture"]
    vectors = encoder.encode(tf.constant(contents))["vector"].numpy()
    assert vectors.shape == (3, 8) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 0], atol=1e-5)
    encoder.export(folder)
    with saved_model.load_session(folder) as loaded:
        served = loaded("serving_default", {"content": contents})["vector"]
    np.testing.assert_allclose(served, vectors, atol=1e-4)  # other kernels of a convolution


def test_a_backbone_encodes_to_unit_vectors_here_and_served(tmp_path):
    require_unit_vectors(make_encoder(RESNET), tmp_path / "encoder")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_every_backbone_encodes_to_unit_vectors_here_and_served(name, tmp_path, short_resnets, monkeypatch):
    monkeypatch.setitem(backbones.NETS, name, short_resnets[name])
    require_unit_vectors(make_encoder(dataclasses.replace(RESNET, encoder=name)), tmp_path / "encoder")


def test_a_backbone_is_the_same_each_time_and_another_with_another_seed():
    first, again = make_encoder(RESNET), make_encoder(RESNET)
    assert first.version() == again.version() != make_encoder(dataclasses.replace(RESNET, seed=1)).version()


def test_weights_of_a_file_are_the_nets(resnet_weights):
    path, net = resnet_weights
    config = dataclasses.replace(RESNET, weights=path)
    for found, wanted in zip(make_encoder(config).build_net().get_weights(), net.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert make_encoder(config).version() != make_encoder(RESNET).version()


def test_version_does_not_depend_on_where_the_weights_lie(resnet_weights, tmp_path):
    elsewhere = tmp_path / "copy.weights.h5"
    shutil.copy(resnet_weights[0], elsewhere)
    here, there = (dataclasses.replace(RESNET, weights=str(path)) for path in (resnet_weights[0], elsewhere))
    epochs = dataclasses.replace(there, epochs=3, learning_rate=1.0)
    assert make_encoder(here).version() == make_encoder(there).version() == make_encoder(epochs).version()


def test_frozen_backbone_gives_the_nets_own_values(resnet_weights, tmp_path):
    path, net = resnet_weights
    config = dataclasses.replace(RESNET, weights=path, frozen=True)
    manifest = train.train(config, tmp_path / "no pairs", tmp_path / "encoder")
    assert manifest["frozen"] and manifest["dim"] == 128
    with saved_model.load_session(tmp_path / "encoder" / "encoder") as loaded:
        vector = loaded("serving_default", {"content": [png(200)]})["vector"][0]
    values = keras.ops.mean(net(np.full((1, 32, 32, 3), 200 / 255, "float32"), training=False), axis=(1, 2))[0]
    np.testing.assert_allclose(vector, values / np.linalg.norm(values), atol=1e-5)
    again = dataclasses.replace(config, dim=16, seed=7)  # neither is of a frozen net's vectors
    assert make_encoder(again).version() == manifest["encoder_version"]


def test_weights_of_another_net_name_the_layers_and_shapes(resnet_weights):
    """Keras itself would load a deeper net's file into this one without a word."""
    shallow = make_encoder(RESNET).build_net()
    x = shallow.get_layer("v2_stack_0_block2_out").output
    smaller = keras.Model(shallow.input, x)
    smaller.load_weights(resnet_weights[0])
    with pytest.raises(ValueError, match=r"those of small, layer by layer[\s\S]*: nothing in small, \(.*\) in"):
        weights_file.load(smaller, resnet_weights[0], "small")
    config = dataclasses.replace(RESNET, encoder="resnet50_v2", weights=resnet_weights[0])
    with pytest.raises(ValueError, match=r"layer 'v2_.*', .*: \(.*\) in resnet50_v2, \(.*\) in the[\s\S]*and \d+ more"):
        make_encoder(config)


@pytest.mark.slow
def test_weights_of_another_image_size_name_the_layer(tmp_path):
    clip = SCLConfig(modality="photo", encoder="clip_vit_b16", image_size=32)
    net = make_encoder(clip).build_net()
    net.save_weights(tmp_path / "clip.weights.h5")
    other = dataclasses.replace(clip, image_size=48, weights=str(tmp_path / "clip.weights.h5"))
    with pytest.raises(ValueError, match=r"layer 'clip_patch_embedding', weight 1: \(10, 768\) in clip_.*, \(5, 768\)"):
        make_encoder(other)


def test_a_part_of_a_larger_models_file_is_found(tmp_path, resnet_weights):
    """As CLIP's file holds both towers."""
    net = resnet_weights[1]
    inputs = keras.Input((32, 32, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(net(inputs))
    whole = keras.Model(inputs, keras.layers.Dense(3)(pooled))
    whole.save_weights(tmp_path / "whole.weights.h5")
    config = dataclasses.replace(RESNET, weights=str(tmp_path / "whole.weights.h5"))
    for found, wanted in zip(make_encoder(config).build_net().get_weights(), net.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("content", [b"", b"no hdf5"])
def test_a_file_that_holds_no_weights_is_refused(tmp_path, content):
    (tmp_path / "a.weights.h5").write_bytes(content)
    with pytest.raises(ValueError, match="`weights` must be a whole HDF5 file"):
        make_encoder(dataclasses.replace(RESNET, weights=str(tmp_path / "a.weights.h5")))


def test_a_backbone_trains(image_pairs):
    fitted = train.fit(dataclasses.replace(RESNET, epochs=1, batch_size=16), image_pairs)
    assert np.isfinite(fitted.history[0]["loss"])


def small_net(path, channels=4):
    inputs = keras.Input((16, 16, 3))
    conv = keras.layers.Conv2D(channels, 3, kernel_initializer=keras.initializers.HeNormal(3))(inputs)
    net = keras.Model(inputs, conv)
    net.save(path)
    return net


def test_a_keras_model_of_a_file_is_an_encoder(tmp_path, image_pairs):
    net = small_net(tmp_path / "mine.keras")
    config = SCLConfig(
        modality="mine",
        encoder=str(tmp_path / "mine.keras"),
        dim=8,
        batch_size=8,
        epochs=1,
        pixel_mean=(0.5, 0.5, 0.5),
        pixel_std=(0.25, 0.25, 0.25),
    )
    assert from_dict(SCLConfig, to_dict(config)) == config
    frozen = make_encoder(dataclasses.replace(config, frozen=True))
    pixels = np.full((1, 16, 16, 3), (200 / 255 - 0.5) / 0.25, "float32")
    values = net(pixels).numpy().mean((1, 2))[0]
    found = frozen.encode(tf.constant([png(200, 16)]))["vector"].numpy()[0]
    np.testing.assert_allclose(found, values / np.linalg.norm(values), atol=1e-5)
    assert np.isfinite(train.fit(config, image_pairs).history[0]["loss"])


def test_version_of_a_model_of_a_file_is_of_its_content(tmp_path):
    net = small_net(tmp_path / "a.keras")
    net.save(tmp_path / "b.keras")
    versions = [make_encoder(SCLConfig(modality="m", encoder=str(tmp_path / f"{n}.keras"))).version() for n in "ab"]
    small_net(tmp_path / "a.keras", channels=5)
    assert versions[0] == versions[1]
    assert make_encoder(SCLConfig(modality="m", encoder=str(tmp_path / "a.keras"))).version() != versions[0]


def test_a_file_that_is_no_model_of_pictures_is_refused(tmp_path):
    inputs = keras.Input((4,))
    keras.Model(inputs, keras.layers.Dense(2)(inputs)).save(tmp_path / "rows.keras")
    with pytest.raises(ValueError, match=r"one input \[B, S, S, 3\].* Received: .*rows\.keras with .*\(None, 4\)"):
        backbones.load_net(str(tmp_path / "rows.keras"))
    (tmp_path / "broken.keras").write_bytes(b"broken")
    with pytest.raises(ValueError, match="must name a Keras model that loads"):
        backbones.load_net(str(tmp_path / "broken.keras"))


def test_all_files_that_lack_are_told_before_any_work(tmp_path):
    photo = Modality("photo", "resnet18_v2", column="image", settings={"weights": "no.weights.h5", "image_size": 32})
    mine = Modality("mine", "no.keras", column="image")
    odd = Modality("odd", "vit_b16", column="image", settings={"weights": "vit.npz", "image_size": 32})
    with pytest.raises(ValueError, match="encoders, methods and model must work") as error:
        runs.verify(RunConfig(modalities=(photo, mine, odd)))
    for fault in (
        "modality 'photo': `weights` must be a file that exists, not 'no.weights.h5'",
        "modality 'mine': `encoder` must be a Keras model's file that exists, not 'no.keras'",
        "modality 'odd': `weights` must be a file .weights.h5 as Keras 3's `save_weights` writes it, not 'vit.npz'",
    ):
        assert fault in str(error.value)


@pytest.mark.parametrize(
    "modality, fault",
    [
        (Modality("p", "resnet18_v2", settings={"width": 3}), "the resnet18_v2 encoder hold no width"),
        (Modality("p", "my.keras", settings={"image_size": 32}), "the my.keras encoder hold no image_size"),
        (Modality("p", "vit_b16", settings={"image_size": 40}), "`image_size` must be a multiple of 16 for vit_b16"),
        (Modality("p", "vit_b16", frozen=True), "with weights of a file can be `frozen`; vit_b16 learns from pairs"),
        (Modality("p", "my.keras", settings={"pixel_mean": (0.5,)}), "`pixel_mean` must have a value for each of"),
    ],
)
def test_declarations_that_cannot_be_are_refused(modality, fault):
    assert any(fault in found for found in modality.faults()), list(modality.faults())


def test_keras_cv_is_imported_by_its_encoders_and_augmentations_alone():
    code = (
        "import sys\nfrom tfmm.config import SCLConfig\nfrom tfmm.pretrain import train\n"
        "from tfmm.pretrain.encoders import make_encoder\nmake_encoder(SCLConfig(image_size=16))\n"
        "make_encoder(SCLConfig(image_size=16, augment=True))\nassert 'keras_cv' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_file_of_whole_clip_has_its_image_tower(tmp_path):
    """keras-cv's class of both towers needs keras-nlp; its file holds each as one layer."""
    kind = backbones.load_keras_cv().models.feature_extractor.CLIPImageEncoder
    tower = kind(
        input_resolution=32, patch_size=16, width=64, num_layers=1, heads=1, output_dim=8, name="image_encoder"
    )
    tower.build((None, 32, 32, 3))
    pixels, text = keras.Input((32, 32, 3), name="images"), keras.Input((4,), name="token_ids")
    both = keras.Model({"images": pixels, "token_ids": text}, [tower(pixels), keras.layers.Dense(8)(text)])
    both.save_weights(tmp_path / "clip.weights.h5")
    with h5py.File(tmp_path / "clip.weights.h5") as file:
        assert any("clip_image_encoder" in name for name in file["layers"])
    fresh = kind(input_resolution=32, patch_size=16, width=64, num_layers=1, heads=1, output_dim=8)
    fresh.build((None, 32, 32, 3))
    weights_file.load(fresh, tmp_path / "clip.weights.h5", "clip")
    for found, wanted in zip(fresh.get_weights(), tower.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_process_in_which_tensorflow_has_keras_2_makes_nets_of_keras_3():
    code = (
        "import tensorflow_transform, tensorflow as tf; from tfmm.config import SCLConfig; "
        "from tfmm.pretrain.encoders import make_encoder; before = tf.keras; "
        f"make_encoder(SCLConfig(encoder={RESNET.encoder!r}, image_size={RESNET.image_size}, dim=8)); "
        "assert tf.keras is before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

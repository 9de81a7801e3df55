"""Pictures varied by keras-cv's layers: as the seed says, on the sides that are named, never in what is exported."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tfmm import extras, saved_model
from tfmm.config import SCLConfig
from tfmm.modalities import Modality
from tfmm.pretrain import augmentation, keras_cv_import, own_encoders
from tfmm.pretrain import train as train_lib
from tfmm.pretrain.encoders import make_encoder
from tfmm.pretrain.pair_table import ContentTable, read_pairs
from tfmm.pretrain.train import epoch_batches, fit, train

SIZE = 16
IMAGE = SCLConfig(image_size=SIZE, width=4, stages=2, head_channels=4, dim=8, batch_size=16, epochs=1,
                  memory_bank_size=0)  # fmt: skip
SEED = tf.constant([3, 4])


@pytest.fixture(scope="module")
def pixels():
    return tf.constant(np.random.default_rng(0).uniform(size=(64, SIZE, SIZE, 3)).astype(np.float32))


def vary(pixels, seed=SEED, **settings):
    config = dataclasses.replace(IMAGE, **settings)
    return tf.function(lambda x, s: augmentation.vary(x, s, config))(pixels, seed).numpy()


@pytest.mark.parametrize("settings", [{"crop": 0.3}, {"color_jitter": 0.4}, {"flip": True}])
def test_the_seed_says_what_a_picture_becomes(pixels, settings):
    varied = vary(pixels, **settings)
    np.testing.assert_array_equal(varied, vary(pixels, **settings))
    assert varied.shape == pixels.shape and varied.dtype == np.float32
    assert varied.min() >= 0.0 and varied.max() <= 1.0
    changed = np.abs(varied - pixels).max(axis=(1, 2, 3)) > 1e-3
    assert changed.mean() > 0.3
    assert np.abs(varied - vary(pixels, tf.constant([3, 5]), **settings)).max() > 0.1
    same = vary(tf.repeat(pixels[:1], 64, axis=0), **settings)
    assert np.abs(same[1:] - same[:1]).max() > 0.1  # each picture its own way


def test_half_of_the_pictures_are_mirrored(pixels):
    varied = vary(pixels, flip=True)
    mirrored = np.abs(varied - pixels.numpy()[:, :, ::-1]).max(axis=(1, 2, 3)) < 1e-6
    left = np.abs(varied - pixels).max(axis=(1, 2, 3)) < 1e-6
    assert (mirrored | left).all() and 0.3 < mirrored.mean() < 0.7


def test_a_crop_is_a_part_of_the_picture_at_full_size():
    """Of a slope from left to right and one from top to bottom, by hand: the ends say which part was taken."""
    slope = np.linspace(0, 1, SIZE, dtype=np.float32)
    picture = np.stack([np.tile(slope, (SIZE, 1)), np.tile(slope[:, None], (1, SIZE)), np.zeros((SIZE, SIZE))], axis=-1)
    varied = vary(tf.constant(np.repeat(picture[None], 200, 0).astype(np.float32)), crop=0.25)
    width = varied[:, 0, -1, 0] - varied[:, 0, 0, 0]
    height = varied[:, -1, 0, 1] - varied[:, 0, 0, 1]
    area = width * height
    assert 0.2 < area.min() < 0.35 and 0.8 < area.max() <= 1.0 + 1e-5
    wide = (width / height)[(width < 0.999) & (height < 0.999)]
    assert 3 / 4 - 1e-3 <= wide.min() < 0.85 and 1.2 < wide.max() <= 4 / 3 + 1e-3
    assert varied[:, 0, 0, 0].max() > 0.3 > 0.05 > varied[:, 0, 0, 0].min()


def test_colors_are_varied_as_far_as_is_said():
    gray = tf.fill([200, SIZE, SIZE, 3], 0.5)
    varied = vary(gray, color_jitter=0.2)
    assert varied.std(axis=(1, 2, 3)).max() < 1e-5  # gray has neither contrast nor saturation nor hue: brightness alone
    brightness = varied[:, 0, 0, 0] - 0.5
    assert -0.2 <= brightness.min() < -0.15 and 0.15 < brightness.max() <= 0.2
    red = tf.constant(np.tile(np.array([0.2, 0.6, 0.6], np.float32), (200, SIZE, SIZE, 1)))  # one minus the color
    shown = 1.0 - vary(red, color_jitter=0.2)[:, 0, 0]
    assert (shown.argmax(axis=1) == 0).all()  # 2 % of the circle at most
    spread = shown.max(axis=1) - shown.min(axis=1)
    assert np.ptp(spread) > 0.05


@pytest.mark.parametrize(("augmented", "sides"), [("queries", (0,)), ("positives", (1, 2)), ("both", (0, 1, 2))])
def test_the_sides_that_are_named_are_varied(image_pairs, augmented, sides):
    config = dataclasses.replace(IMAGE, flip=True, color_jitter=0.3, augmented=augmented)
    pairs, encoder = read_pairs(image_pairs / "train.parquet"), make_encoder(IMAGE)
    plain, varied = (
        next(iter(epoch_batches(one, pairs, ContentTable(make_encoder(one), pairs.contents), 16, 0)))
        for one in (IMAGE, config)
    )
    for side in range(3):
        differs = np.abs(np.asarray(plain[side][0]) - np.asarray(varied[side][0])).max() > 0.01
        assert differs == (side in sides)
    assert encoder.version() == make_encoder(config).version()


def test_a_training_that_was_stopped_goes_on_as_it_was_and_exports_no_augmentation(image_pairs, tmp_path):
    config = dataclasses.replace(IMAGE, epochs=2, crop=0.5, color_jitter=0.3, flip=True)
    straight = fit(config, image_pairs)
    assert straight.encoder.version() != fit(dataclasses.replace(IMAGE, epochs=2), image_pairs).encoder.version()

    class Stop(Exception):
        pass

    def stop(stage, done, total, **metrics):
        if "acc_at_1" in metrics:
            raise Stop

    with pytest.raises(Stop):
        fit(config, image_pairs, checkpoint_dir=tmp_path / "checkpoints", progress=stop)
    manifest = train(config, image_pairs, tmp_path / "out", checkpoint_dir=tmp_path / "checkpoints")
    assert manifest["encoder_version"] == straight.encoder.version()
    loaded = tf.saved_model.load(str(tmp_path / "out" / "encoder"))
    graph = loaded.signatures["serving_default"].graph.as_graph_def()
    nodes = {node.op for nodes in (graph.node, *(f.node_def for f in graph.library.function)) for node in nodes}
    assert not {"CropAndResize", "StatelessRandomUniformV2", "HSVToRGB"} & nodes
    with saved_model.load_session(tmp_path / "out" / "encoder") as encoder:
        content = [read_pairs(image_pairs / "heldout.parquet").contents[0]] * 2
        vector = encoder("serving_default", {"content": content})["vector"]
    np.testing.assert_array_equal(vector[0], vector[1])


def test_without_keras_cv_it_is_said_before_any_work(tmp_path, monkeypatch):
    def require(module, extra):
        raise extras.MissingExtraError(f"`{module}` is not installed.")

    monkeypatch.setattr(keras_cv_import.extras, "require", require)
    monkeypatch.setattr(train_lib, "make_encoder", None)
    with pytest.raises(extras.MissingExtraError, match="`keras_cv` is not installed"):
        fit(dataclasses.replace(IMAGE, flip=True), tmp_path)
    monkeypatch.setattr(own_encoders.extras, "verify", lambda extra, *modules: require(modules[0], extra))
    (fault,) = own_encoders.faults([Modality("image", "image", settings={"crop": 0.5})])
    assert "`keras_cv` is not installed" in fault and not own_encoders.faults([Modality("image", "image")])


def test_texts_have_no_colors():
    (fault,) = Modality("text", "text", settings={"flip": True}).faults()
    assert "hold no flip" in fault


@pytest.mark.parametrize("of", [{"modality": "text"}, {"modality": "caption", "encoder": "text_transformer"}])
@pytest.mark.parametrize("settings", [{"crop": 0.5}, {"color_jitter": 0.1}, {"flip": True}])
def test_settings_of_pictures_are_refused_for_texts(of, settings):
    with pytest.raises(ValueError, match=r"`crop`, `color_jitter`, `flip` vary pictures, and must be left out"):
        SCLConfig(**of, **settings)

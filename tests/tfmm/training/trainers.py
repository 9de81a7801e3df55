"""Trains on small data as a process of its own: devices are set before TensorFlow starts.

    python trainers.py SHOP PAIRS OUTPUT DEVICES STRATEGIES TRAINERS

Each strategy writes below OUTPUT/<strategy>, and each trainer there: `<trainer>/first` after one step of all rows (of
MAKE and the click model with rows that fill the batch), and `<trainer>/later` after about 50.
"""

import dataclasses
import pathlib
import sys

TRAINERS = "text,image,make,ctr"
SETTINGS = {  # batch and epochs of one step, and of about 50
    "text": ((40, 1), (8, 10)),
    "image": ((48, 1), (8, 9)),
    "make": ((3200, 1), (128, 2)),
    "ctr": ((3200, 1), (64, 1)),
}
LENGTHS = ("first", "later")


def main(shop, pairs, output, devices, strategies, trainers=TRAINERS, lengths="first,later"):
    import tensorflow as tf

    from tfmm.config import CTRConfig, MAKEConfig, SCLConfig, TrainingConfig

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(devices))
    small = {"dim": 8, "memory_bank_size": 21, "memory_bank_share": 1.0}  # a bank that wraps inside a global batch
    configs = {
        "text": SCLConfig(modality="text", text_buckets=256, **small),
        "image": SCLConfig(modality="image", image_size=16, width=4, stages=2, head_channels=4, **small),
        "make": MAKEConfig(attention_units=(8,), units=(8, 8, 8)),
        "ctr": CTRConfig(units=(8,), attention_units=(8,), block_rows=256, segments=12),
    }
    for strategy in strategies.split(","):
        for name in trainers.split(","):
            for length, (batch_size, epochs) in zip(LENGTHS, SETTINGS[name], strict=True):
                config = dataclasses.replace(configs[name], batch_size=batch_size, epochs=epochs)
                if name == "ctr" and length == "first":
                    config = dataclasses.replace(config, segments=1)
                if length in lengths:
                    folder = pathlib.Path(output) / strategy / name / length
                    train(config, pathlib.Path(shop), pathlib.Path(pairs), folder, TrainingConfig(strategy))


def train(config, shop, pairs, folder, training):
    from tfmm.config import CTRConfig, SCLConfig
    from tfmm.ctr import train as ctr
    from tfmm.features import FeatureSet
    from tfmm.make import train as make
    from tfmm.pretrain import train as scl

    features = FeatureSet().resolved(max_behaviors=6, min_count=1)
    examples = str(shop / "examples" / "train-*"), str(shop / "examples" / "eval-*")
    also = {"training": training, "checkpoint_dir": folder / "checkpoints", "progress": say}
    if isinstance(config, SCLConfig):
        return scl.train(config, pairs / config.modality, folder, **also)
    if isinstance(config, CTRConfig):
        own = {"modalities": ("image", "text"), "snapshot_dir": shop / "snapshot"}
        return ctr.train(config, *examples, shop / "vocabulary", folder, features, **own, **also)
    return make.train(config, *examples, shop / "snapshot", folder, features, **also)


def say(stage, done, total, note="", **metrics):
    print(stage, done, total, note, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

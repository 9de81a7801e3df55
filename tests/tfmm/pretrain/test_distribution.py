"""Several replicas: one bank, the keys of all of them, and the encoder that one replica would train."""

import pathlib
import subprocess
import sys
import textwrap

import pytest

from tfmm.training import loop

SCRIPT = textwrap.dedent("""
    import dataclasses, pathlib, sys
    import numpy as np, tensorflow as tf
    from tfmm.config import SCLConfig
    from tfmm.pretrain.train import fit
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    # The bank wraps inside a global batch. In-batch negatives would be those of one replica.
    config = SCLConfig(modality="text", text_buckets=256, dim=8, batch_size=8, epochs=2, memory_bank_size=21,
                       memory_bank_share=1.0, in_batch_negatives=False, triplet_weight=0.0)
    states = []
    for name, strategy in (("one", tf.distribute.get_strategy()),
                           ("two", tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))):
        with strategy.scope():
            fit(config, pathlib.Path(sys.argv[1]), checkpoint_dir=pathlib.Path(sys.argv[2]) / name)
        states.append(np.load(next((pathlib.Path(sys.argv[2]) / name).glob("*/state.npz"))))
    one, two = states
    np.testing.assert_array_equal(one["memory_bank/1"], two["memory_bank/1"])  # item ids
    for name in set(one.files) - {"__meta__"}:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-3, atol=1e-4, err_msg=name)  # sums in another order
    print("EQUAL")
""")


@pytest.mark.slow
def test_two_replicas_train_like_one(text_pairs, tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(text_pairs), str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=pathlib.Path(loop.__file__).parents[2],
    )
    assert "EQUAL" in result.stdout, result.stderr[-3000:]

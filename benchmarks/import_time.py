"""Does importing tfmm cost more than importing Keras? Fresh processes, the sides in turn.

The bar: `import tfmm`, and the import of its layers, losses and metrics, take at most 1.2 times as long as
`import keras` with the TensorFlow backend.
"""

import os
import statistics
import subprocess
import sys

import recording

SIDES = {
    "keras": "import keras",
    "tfmm": "import tfmm",
    "layers": "from tfmm import layers, losses, metrics",
}
REPEATS = 11


def main() -> None:
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3",
                   "PYTHONPATH": str(recording.RESULTS.parents[1])}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def start(statement):
        return lambda: subprocess.run([sys.executable, "-W", "ignore", "-c", statement], env=environment,
                                      check=True, capture_output=True)

    seconds = recording.interleave({name: start(statement) for name, statement in SIDES.items()}, REPEATS)
    # The ratio of neighbors in time, since the machine may be shared.
    ratios = {name: statistics.median(a / b for a, b in zip(seconds[name], seconds["keras"]))
              for name in ("tfmm", "layers")}
    recording.write("import_time", "How long does importing tfmm take, against importing Keras?",
                    {"seconds": {name: recording.spread(values) for name, values in seconds.items()},
                     "ratio_to_keras": ratios, "bar": 1.2})
    if max(ratios.values()) > 1.2:
        raise SystemExit("importing tfmm costs more than 1.2 times importing Keras")


if __name__ == "__main__":
    main()

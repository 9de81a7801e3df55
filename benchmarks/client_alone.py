"""How long does the client take to import where nothing else is installed?

The wheel of tfmm-client is built, installed by pip into an empty environment, and imported in fresh processes. The bar:
the median import takes less than a second, and nothing of TensorFlow or Keras is there.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import venv

import recording

REPEATS = 11
ROOT = recording.RESULTS.parents[1]
TIMED = """
import time
start, of_processor = time.perf_counter(), time.process_time()
import tfmm_client
print(time.perf_counter() - start, time.process_time() - of_processor)
"""


ENVIRONMENT = {name: value for name, value in os.environ.items()
               if name not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")}  # fmt: skip


def install(folder: pathlib.Path) -> pathlib.Path:
    """Returns the Python of an environment that has the client alone."""
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder / "dist"),
                    str(ROOT / "serving" / "client_package")], check=True, capture_output=True)  # fmt: skip
    (wheel,) = (folder / "dist").glob("*.whl")
    venv.create(folder / "alone", with_pip=True)
    python = folder / "alone" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(wheel)], check=True, env=ENVIRONMENT)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without-record", action="store_true", help="print the figures alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        python = install(pathlib.Path(folder))

        def timed():
            done = subprocess.run([python, "-c", TIMED], cwd=folder, env=ENVIRONMENT, check=True, capture_output=True)
            return [float(word) for word in done.stdout.split()]

        timed()
        seconds, of_processor = zip(*(timed() for _ in range(REPEATS)))
        command = [python, "-m", "pip", "list", "--format=freeze"]
        listed = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
    packages = listed.stdout.decode().lower().split()
    found = [name for name in packages if name.startswith(("tensorflow", "keras", "tfmm="))]
    results = {"seconds": recording.spread(list(seconds)), "packages": packages,
               "processor_seconds": recording.spread(list(of_processor))}  # fmt: skip
    bars = {"seconds of an import, the median": recording.bar(statistics.median(seconds), at_most=1.0),
            "packages of TensorFlow, Keras or tfmm": recording.bar(len(found), at_most=0)}  # fmt: skip
    if options.without_record:
        print(json.dumps(results, indent=2))
    else:
        recording.write("client_alone", __doc__.splitlines()[0], results, bars=bars)


if __name__ == "__main__":
    main()

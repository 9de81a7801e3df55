"""Packaging of tfmm; the tools' settings are in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
PACKAGE = (ROOT / "tfmm" / "__init__.py").read_text("utf-8")
VERSION = re.search(r'^__version__ = "(.+)"$', PACKAGE, re.M).group(1)

PACKAGES = ("tfmm", "tfx_pipeline", "serving")

# TFX's newer builds need Python 3.11 or newer and glibc 2.39; the older one needs Python 3.10.
OLD, NEW = 'python_version < "3.11"', 'python_version >= "3.11"'

EXTRAS = {
    "vision": ["keras-cv==0.9.0", "pillow>=10"],
    "tfrs": ["tensorflow-recommenders==0.7.7", "tf-keras>=2.16,<2.22"],
    "pipeline": [
        f"tfx==1.16.0; {OLD}", f"tfx>=1.21,<1.22; {NEW}",
        f"apache-beam==2.74.0; {OLD}", f"apache-beam>=2.74,<2.78; {NEW}",
        "dill>=0.4", "jinja2>=3.1", "matplotlib>=3.8", "pandera>=0.22", "pillow>=10", "pip",
        "psutil>=5.9", "setuptools<81",
    ],
    # A distribution of its own, built from serving/client_package: no extra can leave TensorFlow out of tfmm itself.
    "client": [f"tfmm-client=={VERSION}"],
    "serving": [
        "grpcio>=1.60", "httpx>=0.27", "jinja2>=3.1", "orjson>=3.10", "prometheus-client>=0.20", "starlette>=0.40",
        "tensorflow-serving-api>=2.16", f"tfmm-client=={VERSION}", "uvicorn>=0.30",
    ],
    "stream": [
        f"apache-beam==2.74.0; {OLD}", f"apache-beam>=2.74,<2.78; {NEW}",
        "confluent-kafka>=2.4", "dill>=0.4", "prometheus-client>=0.20", "redis>=5",
    ],
    "gpu": ["tensorflow[and-cuda]>=2.16,<2.22"],
}
EXTRAS["all"] = sorted({line for extra in ("vision", "tfrs", "pipeline", "serving", "stream")
                        for line in EXTRAS[extra]})
EXTRAS["dev"] = ["build", "check-jsonschema", "hypothesis", "kubernetes-validate", "mypy", "playwright>=1.49",
                 "pytest>=8", "pytest-timeout", "pytest-xdist", "ruff", "scikit-learn", "sybil>=8", "wheel"]

setup(
    name="tfmm",
    version=VERSION,
    description="Multimodal embeddings in click models: SimTier and MAKE, from raw logs to a served score",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=[*PACKAGES, *(f"{name}.*" for name in PACKAGES)]),
    package_data={"": ["*.j2", "py.typed"], "serving": ["deploy/*", "deploy/*/*"]},
    install_requires=["click>=8.1", "keras>=3", "numpy>=1.26", "pyarrow>=10", "rich>=13",
                      "tensorflow>=2.16,<2.22", f"tomli>=2; {OLD}"],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["tfmm=tfmm.cli:main", "tfmm-tfx=tfx_pipeline.cli:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)

"""Packaging of tfmm-client: a distribution of its own, since no extra of tfmm can leave TensorFlow out."""

import pathlib
import re

from setuptools import setup

ROOT = pathlib.Path(__file__).resolve().parents[2]
(VERSION,) = re.findall(r'^__version__ = "(.+)"$', (ROOT / "tfmm" / "__init__.py").read_text("utf-8"), re.M)

setup(
    name="tfmm-client",
    version=VERSION,
    description="Ranking client of tfmm's models, over gRPC or REST, sync and asyncio, without TensorFlow",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=["tfmm_client"],
    package_data={"tfmm_client": ["*.binpb", "py.typed"]},
    install_requires=["grpcio>=1.60", "httpx>=0.27", "numpy>=1.26", "protobuf>=3.20.3"],
)

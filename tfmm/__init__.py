"""tfmm: multimodal embeddings in click models, from raw logs to a served score.

The subpackages are imported by name (`from tfmm import layers`); `import tfmm` itself loads no heavy library.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]

"""The conformance harness that every tfmm layer passes; use it for layers of your own as well."""

from tfmm.testing.conformance import LayerConformanceError, check_layer

__all__ = ["LayerConformanceError", "check_layer"]

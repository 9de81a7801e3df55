"""The artifacts of the DAG that TFX has no standard type for.

Kubeflow takes `package.Class` for a type's name, and finds the class by it: the package gives it, see `tfx_pipeline`.
"""

from tfx import v1 as tfx


class Dataset(tfx.dsl.Artifact):
    """A folder of Parquet tables (`tfmm data schema`)."""

    TYPE_NAME = "tfx_pipeline.Dataset"


class DataReport(tfx.dsl.Artifact):
    """What `tfmm data check` found."""

    TYPE_NAME = "tfx_pipeline.DataReport"


class Pairs(tfx.dsl.Artifact):
    """Query -> purchased item pairs, one folder per modality."""

    TYPE_NAME = "tfx_pipeline.Pairs"


class Encoders(tfx.dsl.Artifact):
    """Item encoders, one folder per modality."""

    TYPE_NAME = "tfx_pipeline.Encoders"


class IndexSnapshot(tfx.dsl.Artifact):
    """The item index at one sequence number."""

    TYPE_NAME = "tfx_pipeline.IndexSnapshot"


class Make(tfx.dsl.Artifact):
    """A pre-trained multimodal knowledge extractor."""

    TYPE_NAME = "tfx_pipeline.Make"

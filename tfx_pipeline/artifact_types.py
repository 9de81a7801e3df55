"""The artifacts of the DAG that TFX has no standard type for."""

from tfx import v1 as tfx


class Dataset(tfx.dsl.Artifact):
    """A folder of Parquet tables (`tfmm data schema`)."""

    TYPE_NAME = "TfmmDataset"


class DataReport(tfx.dsl.Artifact):
    """What `tfmm data check` found."""

    TYPE_NAME = "TfmmDataReport"


class Pairs(tfx.dsl.Artifact):
    """Query -> purchased item pairs, one folder per modality."""

    TYPE_NAME = "TfmmPairs"


class Encoders(tfx.dsl.Artifact):
    """Item encoders, one folder per modality."""

    TYPE_NAME = "TfmmEncoders"


class IndexSnapshot(tfx.dsl.Artifact):
    """The item index at one sequence number."""

    TYPE_NAME = "TfmmIndexSnapshot"


class Make(tfx.dsl.Artifact):
    """A pre-trained multimodal knowledge extractor."""

    TYPE_NAME = "TfmmMake"

"""Classify, Regress and MultiInference on one version: examples in, classes and values out."""

from __future__ import annotations

import typing

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import classification_pb2, inference_pb2, model_pb2, regression_pb2

from serving.model_server import examples
from serving.model_server.errors import INVALID_ARGUMENT, UNIMPLEMENTED, ServingError
from serving.model_server.servable import DEFAULT_SIGNATURE, Servable

INPUTS = tf.compat.v1.saved_model.CLASSIFY_INPUTS  # what both methods call their one input
CLASSES = tf.compat.v1.saved_model.CLASSIFY_OUTPUT_CLASSES
SCORES = tf.compat.v1.saved_model.CLASSIFY_OUTPUT_SCORES
OUTPUTS = tf.compat.v1.saved_model.REGRESS_OUTPUTS
CLASSIFY = tf.compat.v1.saved_model.CLASSIFY_METHOD_NAME
REGRESS = tf.compat.v1.saved_model.REGRESS_METHOD_NAME


def classify(
    servable: Servable, request: classification_pb2.ClassificationRequest, *, verify_method: bool = False
) -> classification_pb2.ClassificationResponse:
    """Answers a ClassificationRequest.

    Raises:
        ServingError: INVALID_ARGUMENT where the signature does not classify, or the input is empty.
        tf.errors.OpError: as the graph raises it.
    """
    signature = request.model_spec.signature_name or DEFAULT_SIGNATURE
    response = classification_pb2.ClassificationResponse(model_spec=_answered(servable, signature))
    outputs = _run(servable, signature, CLASSIFY, request.input, verify_method)
    response.result.CopyFrom(_classifications(outputs, len(_examples(request.input))))
    return response


def regress(
    servable: Servable, request: regression_pb2.RegressionRequest, *, verify_method: bool = False
) -> regression_pb2.RegressionResponse:
    """Answers a RegressionRequest; raises as `classify` does."""
    signature = request.model_spec.signature_name or DEFAULT_SIGNATURE
    response = regression_pb2.RegressionResponse(model_spec=_answered(servable, signature))
    outputs = _run(servable, signature, REGRESS, request.input, verify_method)
    response.result.CopyFrom(_regressions(outputs, len(_examples(request.input))))
    return response


def multi_inference(
    servable: Servable, request: inference_pb2.MultiInferenceRequest, *, verify_methods: bool = False
) -> inference_pb2.MultiInferenceResponse:
    """Answers a MultiInferenceRequest: several signatures of one model on the same examples.

    Raises:
        ServingError: UNIMPLEMENTED for a method that is neither classify nor regress; else as `classify`.
    """
    names = [task.model_spec.name for task in request.tasks]
    signatures = [task.model_spec.signature_name or DEFAULT_SIGNATURE for task in request.tasks]
    if set(names) - {servable.name}:
        raise ServingError(INVALID_ARGUMENT, f"All tasks must name one model. Received: {names}.")
    if len(set(signatures)) < len(signatures):
        raise ServingError(INVALID_ARGUMENT, f"Each signature may be asked once. Received: {signatures}.")
    response = inference_pb2.MultiInferenceResponse()
    for task, signature in zip(request.tasks, signatures):
        if task.method_name not in (CLASSIFY, REGRESS):
            raise ServingError(UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")
        outputs = _run(servable, signature, task.method_name, request.input, verify_methods)
        result = response.results.add(model_spec=_answered(servable, signature))
        count = len(_examples(request.input))
        if task.method_name == CLASSIFY:
            result.classification_result.CopyFrom(_classifications(outputs, count))
        else:
            result.regression_result.CopyFrom(_regressions(outputs, count))
    return response


def _examples(source: typing.Any) -> typing.Sequence[typing.Any]:
    return getattr(source, source.WhichOneof("kind")).examples


def _answered(servable: Servable, signature: str) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=servable.name, signature_name=signature)
    spec.version.value = servable.version
    return spec


def _run(
    servable: Servable, signature: str, method: str, source: typing.Any, verify_method: bool
) -> dict[str, np.ndarray]:
    """Runs a signature that classifies or regresses on a request's examples."""
    definition = servable.signatures.get(signature)
    if definition is None:
        raise ServingError(INVALID_ARGUMENT, f"No signature was found with the name: {signature}")
    wanted = (CLASSES, SCORES) if method == CLASSIFY else (OUTPUTS,)
    outputs = [name for name in wanted if name in definition.outputs]
    faults = []
    if verify_method and definition.method_name != method:
        faults.append(f"method_name {method}, not {definition.method_name}")
    if list(definition.inputs) != [INPUTS]:
        faults.append(f"one input `{INPUTS}`, not {sorted(definition.inputs)}")
    if not outputs or set(definition.outputs) - set(wanted):
        faults.append(f"outputs of {list(wanted)}, not {sorted(definition.outputs)}")
    if faults:
        verb = method.rsplit("/", 1)[-1]
        raise ServingError(
            INVALID_ARGUMENT, f"To {verb}, signature {signature} must have {'; '.join(faults)}. Use predict."
        )
    return servable.run(signature, {INPUTS: examples.serialized(source)}, outputs)


def _verify_output(name: str, value: np.ndarray, kind: str, shapes: bool) -> None:
    if value.dtype.kind not in kind or not shapes:
        raise ServingError(
            INVALID_ARGUMENT,
            f"Output `{name}` must have one row per example in the form that the method wants. "
            f"Received: {value.dtype} {list(value.shape)}.",
        )


def _classifications(outputs: dict[str, np.ndarray], count: int) -> classification_pb2.ClassificationResult:
    for name, value in outputs.items():
        kind = "OSU" if name == CLASSES else "f"
        _verify_output(name, value, kind, value.ndim == 2 and len(value) == count)
    if len({value.shape for value in outputs.values()}) > 1:
        raise ServingError(
            INVALID_ARGUMENT,
            f"Outputs must have one shape. Received: { {n: list(v.shape) for n, v in outputs.items()} }.",
        )
    result = classification_pb2.ClassificationResult()
    labels, scores = outputs.get(CLASSES), outputs.get(SCORES)
    for row in range(count):
        classes = result.classifications.add().classes
        for column in range(next(iter(outputs.values())).shape[1]):
            entry = classes.add()
            if labels is not None:
                entry.label = labels[row, column].decode("utf-8", "replace")
            if scores is not None:
                entry.score = float(scores[row, column])
    return result


def _regressions(outputs: dict[str, np.ndarray], count: int) -> regression_pb2.RegressionResult:
    value = outputs[OUTPUTS]
    _verify_output(OUTPUTS, value, "f", value.shape in ((count,), (count, 1)))
    result = regression_pb2.RegressionResult()
    for number in value.ravel().tolist():
        result.regressions.add(value=number)
    return result

"""The conformance harness that every tfmm layer passes; use it for layers of your own as well."""

from __future__ import annotations

import inspect
import os
import tempfile
import typing

import keras
import numpy as np

_INIT_ARGUMENTS_OF_KERAS = {"self", "args", "kwargs", "name", "dtype", "trainable", "autocast"}
Arrays = typing.Mapping[str, np.ndarray]


class LayerConformanceError(AssertionError):
    """A layer breaks one of the rules that `check_layer` lists; the message names it."""


def check_layer(
    layer_class: type[keras.layers.Layer],
    init_kwargs: typing.Mapping[str, typing.Any],
    inputs: Arrays,
    *,
    differentiable: typing.Collection[str] = (),
    same_under_policies: bool = False,
    zero_when_masked: bool = True,
    make_layer: typing.Callable[..., keras.layers.Layer] | None = None,
    atol: float = 1e-5,
) -> None:
    """Runs a layer through what makes it usable in anybody's model.

    In this order: every constructor argument is in the config and the config makes the layer again; the class
    is registered; `compute_output_spec` with an unknown batch size tells shape and dtype; a row's result does
    not depend on the batch around it; a compiled graph (on TensorFlow with and without XLA) gives the eager
    result; a `.keras` file, and on TensorFlow a SavedModel loaded by the C++ loader, give it too; mixed
    policies run, finite; what a mask hides changes nothing, a mask that travels with an input is found, and
    hiding all gives no NaN; gradients reach all trainable weights and exactly the inputs named in
    `differentiable`.

    Args:
        layer_class: the layer; its `call` takes tensors by the names in `inputs`.
        init_kwargs: constructor arguments; give values that are not the defaults.
        inputs: arrays by the name of the `call` argument, each with the batch as first axis, of at least 2
            rows. `<argument>_mask`, bool, hides rows of `<argument>` where False; each mask should hide
            something.
        differentiable: names of the float inputs that a gradient must reach; it must reach no other.
        same_under_policies: the output must be equal to float32's under mixed_bfloat16 and mixed_float16.
        zero_when_masked: a row with everything hidden gives zeros (else only: no NaN).
        make_layer: makes the layer from `init_kwargs` where the constructor alone does not (a table to load).
        atol: how far two ways to the same result may differ, absolute and relative.
    Raises:
        LayerConformanceError: names the rule that the layer breaks.

    >>> from tfmm.layers import DINAttention
    >>> rng = np.random.default_rng(0)
    >>> inputs = {"target": rng.normal(size=(2, 4)).astype("float32"),
    ...           "behaviors": rng.normal(size=(2, 3, 4)).astype("float32"),
    ...           "behaviors_mask": np.array([[True, True, False], [True, False, False]])}
    >>> check_layer(DINAttention, {"units": (5,)}, inputs, differentiable=["target", "behaviors"])
    """
    check = _Check(layer_class, dict(init_kwargs), dict(inputs), make_layer, atol)
    check.config()
    check.symbolic_shape()
    check.batch_independence()
    check.compiled()
    check.saved()
    check.policies(same_under_policies)
    check.masks(zero_when_masked)
    check.gradients(set(differentiable))


class _Check:
    def __init__(
        self,
        layer_class: type[keras.layers.Layer],
        init_kwargs: dict[str, typing.Any],
        inputs: dict[str, np.ndarray],
        make_layer: typing.Callable[..., keras.layers.Layer] | None,
        atol: float,
    ) -> None:
        self.layer_class = layer_class
        self.init_kwargs = init_kwargs
        self.inputs = inputs
        self.make_layer = make_layer or layer_class
        self.atol = atol
        self.layer = self.make_layer(**init_kwargs)
        self.expected = self.run(self.layer, inputs)

    def require(self, holds: bool, rule: str) -> None:
        if not holds:
            raise LayerConformanceError(f"{self.layer_class.__name__}({self.init_kwargs}): {rule}.")

    def run(self, layer: typing.Callable[..., typing.Any], inputs: Arrays) -> dict[str, np.ndarray]:
        return _to_numpy(layer(**{name: keras.ops.convert_to_tensor(x) for name, x in inputs.items()}))

    def require_equal(self, received: Arrays, expected: Arrays, rule: str, atol: float | None = None) -> None:
        atol = self.atol if atol is None else atol
        self.require(received.keys() == expected.keys(), f"{rule} (outputs {sorted(received)})")
        for name, value in expected.items():
            self.require(
                received[name].shape == value.shape,
                f"{rule} ({name or 'the output'} has the shape {received[name].shape}, not {value.shape})",
            )
            close = np.allclose(
                received[name].astype(np.float64), value.astype(np.float64), atol, atol, equal_nan=True
            )
            self.require(close, f"{rule} ({name or 'the output'} differs)")

    def config(self) -> None:
        config = self.layer.get_config()
        names = set(inspect.signature(self.layer_class.__init__).parameters) - _INIT_ARGUMENTS_OF_KERAS
        self.require(names <= set(config), f"get_config must hold {sorted(names - set(config))}")
        for name, value in self.init_kwargs.items():
            stored = config.get(name, getattr(self.layer, name, None))
            if isinstance(value, (bool, int, float, str)) and not isinstance(
                stored, dict
            ):  # dict: serialized
                self.require(stored == value, f"get_config must hold {name}={value!r}, not {stored!r}")
        again = self.layer_class.from_config(config)
        self.require(again.get_config() == config, "from_config(get_config()) must give the same config")
        registered = keras.saving.get_registered_name(self.layer_class)
        self.require(
            ">" in registered or self.layer_class.__module__.startswith("keras."),
            "the class must be registered with keras.saving.register_keras_serializable",
        )

    def symbolic_shape(self) -> None:
        layer = self.make_layer(**self.init_kwargs)
        spec = _flatten(layer.compute_output_spec(**_symbolic(self.inputs)))
        self.require(spec.keys() == self.expected.keys(), f"compute_output_spec names {sorted(spec)}")
        for name, tensor in spec.items():
            value = self.expected[name]
            shape = (value.shape[0] if tensor.shape[0] is None else tensor.shape[0], *tensor.shape[1:])
            self.require(shape == value.shape, f"compute_output_spec must give {value.shape}, not {shape}")
            dtype = keras.backend.standardize_dtype(tensor.dtype)
            self.require(
                dtype == str(value.dtype), f"compute_output_spec must give {value.dtype}, not {dtype}"
            )

    def batch_independence(self) -> None:
        received = self.run(self.layer, {name: x[:1] for name, x in self.inputs.items()})
        expected = {name: x[:1] for name, x in self.expected.items()}
        self.require_equal(received, expected, "a row's result must not depend on the rest of the batch")

    def compiled(self) -> None:
        for name, compiled in _compilers():
            received = self.run(compiled(self.layer), self.inputs)
            self.require_equal(received, self.expected, f"{name} must give the eager result")

    def saved(self) -> None:
        inputs = _symbolic(self.inputs, keras.Input)
        names = list(inputs)
        model = keras.Model(inputs, self.layer(**inputs))
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "layer.keras")
            model.save(path)
            loaded = keras.models.load_model(path)
            received = self.run(lambda **x: loaded({name: x[name] for name in names}), self.inputs)
            self.require_equal(received, self.expected, "a .keras file must give the same result")
            if keras.backend.backend() == "tensorflow":
                received = _run_exported(model, self.inputs, os.path.join(folder, "exported"))
                expected = self.expected  # a single output has a name of the signature's own
                if len(received) == 1:
                    expected = dict(zip(received, self.expected.values(), strict=True))
                self.require_equal(received, expected, "the C++ loader must give the same result")

    def policies(self, same: bool) -> None:
        before = keras.config.dtype_policy()
        for policy in ("mixed_bfloat16", "mixed_float16"):
            try:
                keras.config.set_dtype_policy(policy)
                layer = self.make_layer(**self.init_kwargs)
                received = self.run(layer, self.inputs)
                if layer.weights:
                    layer.set_weights(self.layer.get_weights())
                    received = self.run(layer, self.inputs)
            finally:
                keras.config.set_dtype_policy(before)
            for name, value in received.items():
                finite = bool(np.isfinite(value.astype(np.float64)).all())
                self.require(finite, f"{name or 'the output'} must be finite under {policy}")
            if same:
                self.require_equal(received, self.expected, f"{policy} must change nothing", atol=1e-6)

    def masks(self, zero_when_masked: bool) -> None:
        names = [name for name in self.inputs if name.endswith("_mask")]
        for mask_name in names:
            mask, name = self.inputs[mask_name], mask_name.removesuffix("_mask")
            if name not in self.inputs:
                continue
            self.require(not mask.all(), f"`{mask_name}` must hide something, else nothing is tested")
            hidden = np.array(self.inputs[name])
            hidden[~mask] = 1
            received = self.run(self.layer, {**self.inputs, name: hidden})
            self.require_equal(received, self.expected, f"what `{mask_name}` hides must change nothing")
            self._mask_travels(name, mask_name)
            nothing = self.run(self.layer, {**self.inputs, mask_name: np.zeros_like(mask)})
            for output, value in nothing.items():
                self.require(bool(np.isfinite(value).all()), f"a fully hidden `{name}` must give no NaN")
                if zero_when_masked:
                    self.require(
                        not value.any(),
                        f"a fully hidden `{name}` must give zeros in {output or 'the output'}",
                    )

    def _mask_travels(self, name: str, mask_name: str) -> None:
        if self.inputs[name].dtype != np.float32 or len(self.inputs) < 3:
            return  # only floats carry a mask, and Keras fills `<argument>_mask` beside a second tensor only
        tensors = {k: keras.ops.convert_to_tensor(x) for k, x in self.inputs.items() if k != mask_name}
        tensors[name]._keras_mask = keras.ops.convert_to_tensor(self.inputs[mask_name])
        received = _to_numpy(self.layer(**tensors))
        self.require_equal(received, self.expected, f"a mask that travels with `{name}` must be found")

    def gradients(self, differentiable: set[str]) -> None:
        names = [name for name, x in self.inputs.items() if x.dtype.kind == "f"]
        of_inputs, of_weights = _gradients(self.layer, self.inputs, names)
        for name, gradient in zip(names, of_inputs):
            reached = gradient is not None and bool(np.any(gradient))
            self.require(
                gradient is None or bool(np.isfinite(gradient).all()),
                f"the gradient of `{name}` is not finite",
            )
            verb = "must" if name in differentiable else "must not"
            self.require(reached == (name in differentiable), f"a gradient {verb} reach `{name}`")
        for weight, gradient in zip(self.layer.trainable_weights, of_weights):
            self.require(gradient is not None, f"a gradient must reach the weight {weight.path}")


def _flatten(outputs: typing.Any) -> dict[str, typing.Any]:
    if isinstance(outputs, dict):
        return dict(outputs)
    if isinstance(outputs, (list, tuple)):
        return {str(i): x for i, x in enumerate(outputs)}
    return {"": outputs}


def _to_numpy(outputs: typing.Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(keras.ops.convert_to_numpy(x)) for name, x in _flatten(outputs).items()}


def _symbolic(inputs: Arrays, make: typing.Callable[..., typing.Any] | None = None) -> dict[str, typing.Any]:
    if make is not None:
        return {name: make(x.shape[1:], dtype=str(x.dtype), name=name) for name, x in inputs.items()}
    return {
        name: keras.KerasTensor((None, *x.shape[1:]), str(x.dtype), name=name) for name, x in inputs.items()
    }


def _compilers() -> list[tuple[str, typing.Callable[..., typing.Any]]]:
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        def graph(layer: typing.Any, jit_compile: bool) -> typing.Any:
            return tf.function(lambda **tensors: layer(**tensors), jit_compile=jit_compile, autograph=False)

        return [("tf.function", lambda layer: graph(layer, False)), ("XLA", lambda layer: graph(layer, True))]
    if backend == "jax":
        import jax

        return [("jax.jit", lambda layer: jax.jit(lambda **tensors: layer(**tensors)))]
    return []


def _run_exported(model: keras.Model, inputs: Arrays, path: str) -> dict[str, np.ndarray]:
    """Exports a model and runs its signature in a Session: the C++ loader that TF Serving uses."""
    import tensorflow as tf

    model.export(path, verbose=False)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], path)
        signature = graph.signature_def["serving_default"]
        feeds = {signature.inputs[name].name: x for name, x in inputs.items()}
        return session.run({name: x.name for name, x in signature.outputs.items()}, feeds)


def _gradients(
    layer: keras.layers.Layer, inputs: Arrays, names: list[str]
) -> tuple[list[np.ndarray | None], list[np.ndarray | None]]:
    """Gradients of the sum of all outputs by the named inputs and by the trainable weights."""
    backend = keras.backend.backend()
    tensors = {name: keras.ops.convert_to_tensor(x) for name, x in inputs.items()}

    def total(outputs: typing.Any) -> typing.Any:
        floats = [
            x for x in _flatten(outputs).values() if "float" in keras.backend.standardize_dtype(x.dtype)
        ]
        return sum(keras.ops.sum(keras.ops.cast(x, "float32") ** 2) for x in floats)

    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            watched = [tensors[name] for name in names]
            tape.watch(watched)
            value = total(layer(**tensors))
        weights = [weight.value for weight in layer.trainable_weights]
        found = tape.gradient(value, watched + weights)
        arrays = [None if g is None else tf.convert_to_tensor(g).numpy() for g in found]
    elif backend == "torch":
        for name in names:
            tensors[name] = tensors[name].detach().requires_grad_(True)
        value = total(layer(**tensors))
        if value.requires_grad:
            value.backward()
        found = [tensors[name].grad for name in names] + [w.value.grad for w in layer.trainable_weights]
        arrays = [None if g is None else g.detach().cpu().numpy() for g in found]
    else:
        import jax

        trainable = [w.value for w in layer.trainable_weights]
        rest = [w.value for w in layer.non_trainable_variables]

        def value_of(chosen: list[typing.Any], weights: list[typing.Any]) -> typing.Any:
            given = {**tensors, **dict(zip(names, chosen))}
            return total(layer.stateless_call(weights, rest, **given)[0])

        of_inputs, of_weights = jax.grad(value_of, argnums=(0, 1))([tensors[n] for n in names], trainable)
        arrays = [np.asarray(g) for g in [*of_inputs, *of_weights]]
    return arrays[: len(names)], arrays[len(names) :]

"""The rules of the harness, in the order in which `check_layer` names them."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import tempfile
import typing

import keras
import numpy as np

from tfmm.testing import arguments, differentiation, execution
from tfmm.testing.arguments import Arrays
from tfmm.testing.execution import Tensors

_ARGUMENTS_OF_KERAS = {"self", "name", "dtype", "trainable", "autocast"}
_MIXED_POLICIES = ("mixed_bfloat16", "mixed_float16")
_LARGE = 1e4  # float16 still holds it


class LayerConformanceError(AssertionError):
    """A layer breaks one of the rules that `check_layer` lists; the message names it."""


def check_layer(
    layer_class: type[keras.layers.Layer],
    init_kwargs: typing.Mapping[str, typing.Any],
    inputs: typing.Mapping[str, typing.Any],
    *,
    differentiable: typing.Collection[str] = (),
    same_under_policies: bool = False,
    zero_when_masked: bool = True,
    make_layer: typing.Callable[..., keras.layers.Layer] | None = None,
    atol: float = 1e-5,
    masks: typing.Mapping[str, str | None] | None = None,
    ignores_hidden_nan: bool = False,
    unreached_weights: typing.Collection[str] = (),
) -> None:
    """Runs a layer through what makes it usable in anybody's model.

    In this order, under the policy float32 where no other is named:

    - config: it holds every constructor argument that was given or has no default, and makes the layer again;
      the class is registered. Of a layer with trainable weights, a config with trainable=False makes one without,
      whose config says so again.
    - calls: a second one gives the same result; none creates weights.
    - symbolic call: with an unknown batch size it tells shape and dtype.
    - batch: a row's result is the same alone, and with the rows in reverse. Outputs without axes have no rows.
    - compilation: a compiled graph (on TensorFlow with and without XLA) gives the eager result.
    - saving: a `.keras` file, and on TensorFlow a SavedModel loaded by the C++ loader, give it too.
    - masks: each changes the result; finite values that it hides change nothing, be they as large as 1e4 (a
      hidden NaN may spread, as it does through any product with zero weights, unless `ignores_hidden_nan`); one
      that travels with an input is found; hiding all gives no NaN.
    - mixed policies: they run, finite also where all is hidden, with the dtypes that the symbolic call tells.
    - training: where `call` takes `training`, it runs with True, and what it gives is finite.
    - gradients: finite ones, not zero everywhere, reach each trainable weight and exactly the inputs named in
      `differentiable`; not asked of weights where no output is float. They stay finite where a mask hides all of
      an input, and where it hides all of its first row.

    The batch size alone is varied: a layer that takes a sequence is not tried with another length. Call `check_layer`
    once more with inputs of another length for that.

    Args:
        layer_class: the layer; its `call` takes tensors by the names in `inputs` and returns one or more, nested
            as you like.
        init_kwargs: constructor arguments; give values that are not the defaults.
        inputs: arrays or lists by the name of the `call` argument, each with the batch as first axis, of at
            least 2 rows that differ. `<argument>_mask`, bool, hides what it says False of in `<argument>`; each
            mask must hide something.
        differentiable: names of the float inputs that a gradient must reach; it must reach no other.
        same_under_policies: the output must be equal to float32's under mixed_bfloat16 and mixed_float16.
        zero_when_masked: a row with everything hidden gives zeros (else only: no NaN).
        make_layer: makes the layer from `init_kwargs` where the constructor alone does not (a table to load).
        atol: how far two ways to the same result may differ, absolute and relative.
        masks: mask -> the input that it hides, where the names do not tell and more than one input has the
            mask's axes first; mask -> None for one that hides no input, which only must change the result.
        ignores_hidden_nan: NaN in a hidden place of a float input must change nothing either.
        unreached_weights: trainable weights that no gradient need reach, by the end of their path
            ("codebook", "dense/bias").
    Raises:
        LayerConformanceError: names the rule that the layer breaks; an error of the layer's is its cause.
        ValueError: the arguments leave a rule untested: an unknown name, a single row, a mask that hides
            nothing or no known input.

    >>> from tfmm.layers import DINAttention
    >>> rng = np.random.default_rng(0)
    >>> inputs = {"target": rng.normal(size=(2, 4)).astype("float32"),
    ...           "behaviors": rng.normal(size=(2, 3, 4)).astype("float32"),
    ...           "behaviors_mask": np.array([[True, True, False], [True, False, False]])}
    >>> check_layer(DINAttention, {"units": (5,)}, inputs, differentiable=["target", "behaviors"])
    """
    arrays = arguments.as_arrays(inputs)
    arguments.require_float_inputs(differentiable, arrays)
    hidden_by = arguments.inputs_hidden_by_masks(arrays, masks or {})
    with execution.dtype_policy("float32"):
        check = _Check(layer_class, dict(init_kwargs), arrays, hidden_by, zero_when_masked, make_layer, atol)
        check.config()
        check.frozen()
        check.second_call()
        check.symbolic_call()
        check.batch_independence()
        check.compiled()
        check.saved()
        check.masks(ignores_hidden_nan)
        check.policies(same_under_policies)
        check.training()
        check.gradients(set(differentiable), set(unreached_weights))


class _Check:
    """One layer and its inputs; each public method is a rule."""

    def __init__(
        self,
        layer_class: type[keras.layers.Layer],
        init_kwargs: dict[str, typing.Any],
        inputs: dict[str, np.ndarray],
        hidden_by: dict[str, str | None],
        zero_when_masked: bool,
        make_layer: typing.Callable[..., keras.layers.Layer] | None,
        atol: float,
    ) -> None:
        self.layer_class = layer_class
        self.init_kwargs = init_kwargs
        self.inputs = inputs
        self.hidden_by = hidden_by
        self.zero_when_masked = zero_when_masked
        self.make_layer = make_layer or layer_class
        self.atol = atol
        self.layer = self.new_layer()
        with self.rule("`call` must run on `inputs`, and create no sublayer (make it in `__init__`)"):
            self.outputs = execution.call(self.layer, inputs)
            self.expected = execution.to_arrays(self.outputs)
        self.require(bool(self.expected), "`call` must return a tensor")

    def config(self) -> None:
        with self.rule("get_config must give the constructor's arguments"):
            config = self.layer.get_config()
        parameters = inspect.signature(self.layer_class.__init__).parameters
        for name, parameter in parameters.items():
            if name in _ARGUMENTS_OF_KERAS or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            needed = name in self.init_kwargs or parameter.default is parameter.empty
            self.require(name in config or not needed, f"get_config must hold `{name}`")
        for name, value in self.init_kwargs.items():
            stored = config.get(name, getattr(self.layer, name, None))
            default = parameters[name].default if name in parameters else None
            agrees = _agrees(stored, value, default)
            self.require(agrees, f"get_config must hold {name}={value!r}, not {stored!r}")
        with self.rule("from_config(get_config()) must make the layer; `__init__` takes Keras's own by **kwargs"):
            same = bool(self.layer_class.from_config(config).get_config() == config)
        self.require(same, "from_config(get_config()) must give the same config")
        registered = keras.saving.get_registered_name(self.layer_class)
        self.require(
            ">" in registered or self.layer_class.__module__.startswith("keras."),
            "the class must be registered with keras.saving.register_keras_serializable",
        )

    def frozen(self) -> None:
        if not self.layer.trainable_weights:
            return  # nothing to freeze; some layers of Keras then take no `trainable`
        rule = "trainable=False must survive get_config and from_config: `__init__` hands it to Keras by **kwargs"
        with self.rule(rule):
            layer = self.layer_class.from_config({**self.layer.get_config(), "trainable": False})
            self.require(layer.get_config().get("trainable") is False, rule)
        self.spec(layer)
        paths = [weight.path for weight in layer.trainable_weights]
        self.require(not paths, f"a layer made with trainable=False must have no trainable weights, not {paths}")

    def second_call(self) -> None:
        rule = "a call must create no sublayer or weight; make them in `__init__` or `build`"
        with self.rule(rule), execution.weights_made() as made:
            received = self.run(self.inputs)
        self.require(not made, f"{rule} (made: {sorted(set(made))})")
        self.require_equal(received, self.expected, "a second call must give the same result")

    def symbolic_call(self) -> None:
        self.require_spec(self.spec(self.new_layer()), self.outputs)

    def batch_independence(self) -> None:
        with_rows = {name: x for name, x in self.expected.items() if x.ndim}
        if not with_rows:
            return  # a layer of one number for the whole batch may refuse a batch of one row
        rule = "a row's result must not depend on the rest of the batch"
        last = len(next(iter(self.inputs.values()))) - 1
        for rows in ([0], [last], list(range(last, -1, -1))):
            with self.rule(rule):
                received = self.run({name: x[rows] for name, x in self.inputs.items()})
                expected = {name: x[rows] for name, x in with_rows.items()}
            received = {name: x for name, x in received.items() if name in with_rows}
            self.require_equal(received, expected, rule)

    def compiled(self) -> None:
        for name, compiled in execution.compilers():
            with self.rule(f"{name} must compile `call`: no Python branch on a tensor's value, no NumPy"):
                received = execution.to_arrays(execution.call(compiled(self.layer), self.inputs))
            self.require_equal(received, self.expected, f"{name} must give the eager result")

    def saved(self) -> None:
        inputs = execution.symbolic_inputs(self.inputs)
        with tempfile.TemporaryDirectory() as folder:
            path, rule = os.path.join(folder, "layer.keras"), "a .keras file must give the same result"
            with self.rule(rule):
                model = keras.Model(inputs, execution.flatten(self.layer(**inputs)))
                model.save(path)
                loaded = keras.models.load_model(path)
                received = execution.to_arrays(execution.call(lambda **x: loaded(x), self.inputs))
            self.require_equal(received, self.expected, rule)
            if keras.backend.backend() == "tensorflow":
                rule = "the C++ loader must give the same result"
                with self.rule(rule):
                    path = os.path.join(folder, "exported")
                    model.export(path, verbose=False)
                    received = execution.run_saved_model(path, self.inputs)
                self.require_equal(received, self.expected, rule)

    def masks(self, ignores_hidden_nan: bool) -> None:
        for mask_name, name in self.hidden_by.items():
            if name is not None:
                self.require_hidden_values_change_nothing(mask_name, name, ignores_hidden_nan)
                self.require_mask_travels(mask_name, name)
            self.require_mask_changes_result(mask_name)
            self.require_sound_when_all_hidden(self.layer, mask_name)

    def policies(self, same: bool) -> None:
        for policy in _MIXED_POLICIES:
            with execution.dtype_policy(policy):
                layer = self.new_layer()
                spec = self.spec(layer, f" under {policy}")
                with self.rule(f"the layer must run under {policy}"):
                    layer.set_weights(self.layer.get_weights())
                    outputs = execution.call(layer, self.inputs)
                    received = execution.to_arrays(outputs)
                self.require_spec(spec, outputs, f" under {policy}")
                for name, value in received.items():
                    self.require(_is_finite(value), f"`{name}` must be finite under {policy}")
                if same:
                    self.require_equal(received, self.expected, f"{policy} must change nothing", atol=1e-6)
                for mask_name in self.hidden_by:
                    self.require_sound_when_all_hidden(layer, mask_name, f" under {policy}")

    def training(self) -> None:
        if "training" not in inspect.signature(self.layer.call).parameters:
            return
        layer, rule = self.new_layer(), "`call` must run with training=True"  # a new one, as training may change it
        with self.rule(rule):
            received = execution.to_arrays(execution.call(functools.partial(layer, training=True), self.inputs))
        for name, value in received.items():
            self.require(_is_finite(value), f"{rule} and give finite values in `{name}`")

    def gradients(self, differentiable: set[str], unreached_weights: set[str]) -> None:
        floats = [name for name, dtype in execution.dtypes(self.outputs).items() if "float" in dtype]
        paths = [weight.path for weight in self.layer.trainable_weights]
        needless = arguments.paths_with_ends(unreached_weights, paths)
        names = [name for name, x in self.inputs.items() if x.dtype.kind == "f"]
        labels = [f"`{name}`" for name in names] + [f"the weight {path}" for path in paths]
        wanted = [name in differentiable for name in names] + [bool(floats) and path not in needless for path in paths]
        outputs = {name: self.expected[name] for name in floats}
        with self.rule("`call` must be differentiable"):
            reached, finite = differentiation.reach_of_gradients(
                self.layer, self.inputs, names, outputs, np.array(wanted, bool)
            )
        for i, label in enumerate(labels):
            self.require(bool(finite[i]), f"the gradient of {label} must be finite")
            self.require(bool(reached[i]) or not wanted[i], f"a gradient must reach {label}")
            if i < len(names):
                self.require(bool(reached[i]) == wanted[i], f"a gradient must not reach {label}")
        for mask_name in self.hidden_by if outputs and labels else ():
            for rows, words in ((slice(1), "in its first row"), (slice(None), "everywhere")):
                mask = np.array(self.inputs[mask_name])
                mask[rows] = False
                rule = f"must be finite where `{mask_name}` is False {words}"
                with self.rule(f"gradients {rule}"):
                    inputs = {**self.inputs, mask_name: mask}
                    finite = differentiation.finite_gradients(self.layer, inputs, names, outputs)
                for label, is_finite in zip(labels, finite):
                    self.require(bool(is_finite), f"the gradient of {label} {rule}")

    # What the rules above are made of.

    @contextlib.contextmanager
    def rule(self, rule: str) -> typing.Iterator[None]:
        """Names the rule in whatever error the block raises."""
        try:
            yield
        except LayerConformanceError:
            raise
        except Exception as error:
            raise LayerConformanceError(self.message(f"{rule}; it raised {type(error).__name__}")) from error

    def require(self, holds: bool, rule: str) -> None:
        if not holds:
            raise LayerConformanceError(self.message(rule))

    def message(self, rule: str) -> str:
        return f"{self.layer_class.__name__}({self.init_kwargs}): {rule}."

    def new_layer(self) -> keras.layers.Layer:
        with self.rule("the constructor must take `init_kwargs`"):
            return self.make_layer(**self.init_kwargs)

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        return execution.to_arrays(execution.call(self.layer, inputs))

    def require_equal(self, received: Arrays, expected: Arrays, rule: str, atol: float | None = None) -> None:
        atol = self.atol if atol is None else atol
        self.require(received.keys() == expected.keys(), f"{rule} (outputs {sorted(received)})")
        for name, value in expected.items():
            shape = received[name].shape
            self.require(shape == value.shape, f"{rule} (`{name}` has the shape {shape}, not {value.shape})")
            close = np.allclose(received[name].astype(np.float64), value.astype(np.float64), atol, atol, equal_nan=True)
            self.require(close, f"{rule} (`{name}` differs)")

    def spec(self, layer: keras.layers.Layer, where: str = "") -> Tensors:
        """Calls the layer symbolically, with an unknown batch size; this builds it."""
        with self.rule(
            f"a symbolic call must work{where}: no Python branch on a tensor's value, no NumPy in `call`; "
            "`compute_output_shape` takes one `<argument>_shape` per tensor"
        ):
            return execution.flatten(layer(**execution.symbolic_inputs(self.inputs)))

    def require_spec(self, spec: Tensors, outputs: Tensors, where: str = "") -> None:
        names, received_names = sorted(spec), sorted(outputs)
        self.require(names == received_names, f"compute_output_spec must name {received_names}, not {names}")
        expected, declared = execution.dtypes(outputs), execution.dtypes(spec)
        for name, tensor in spec.items():
            received = tuple(outputs[name].shape)
            shape = tuple(tensor.shape)
            if shape[:1] == (None,):
                shape = (*received[:1], *shape[1:])
            rule = f"compute_output_spec must give `{name}`{where}"
            self.require(shape == received, f"{rule} as {received}, not {shape}")
            if where and keras.backend.backend() == "torch":
                continue  # Keras's symbolic call on Torch casts no weight, and so tells float32
            self.require(declared[name] == expected[name], f"{rule} as {expected[name]}, not {declared[name]}")

    def require_hidden_values_change_nothing(self, mask_name: str, name: str, nan: bool) -> None:
        rule = f"what `{mask_name}` hides must change nothing"
        values, mask = self.inputs[name], self.inputs[mask_name]
        of_floats = [1, _LARGE, -_LARGE] + [np.nan] * nan
        for value in of_floats if values.dtype.kind == "f" else [1, values.max()]:
            hidden = np.array(values)
            hidden[~mask] = value
            with self.rule(rule):
                received = self.run({**self.inputs, name: hidden})
            self.require_equal(received, self.expected, f"{rule}, here {value} in `{name}`")

    def require_mask_travels(self, mask_name: str, name: str) -> None:
        others = len(self.inputs) - 1
        expected_name = f"{name}_mask" if others > 1 else "mask"  # the argument that Keras fills
        if mask_name != expected_name or self.inputs[name].dtype != np.float32:
            return  # only floats carry a mask
        rule = f"a mask that travels with `{name}` must be found"
        tensors = {k: keras.ops.convert_to_tensor(x) for k, x in self.inputs.items() if k != mask_name}
        tensors[name]._keras_mask = keras.ops.convert_to_tensor(self.inputs[mask_name])
        with self.rule(rule):
            received = execution.to_arrays(execution.flatten(self.layer(**tensors)))
        self.require_equal(received, self.expected, rule)

    def require_mask_changes_result(self, mask_name: str) -> None:
        mask = self.inputs[mask_name]
        for other in (np.zeros_like(mask), np.ones_like(mask)):
            with self.rule(f"the layer must run with any `{mask_name}`"):
                received = self.run({**self.inputs, mask_name: other})
            if any(not np.array_equal(received[name], x) for name, x in self.expected.items()):
                return
        self.require(False, f"`{mask_name}` must change the result; the layer ignores it")

    def require_sound_when_all_hidden(self, layer: keras.layers.Layer, mask_name: str, where: str = "") -> None:
        name = self.hidden_by[mask_name]
        nothing = {**self.inputs, mask_name: np.zeros_like(self.inputs[mask_name])}
        words = f"a fully hidden `{name}`" if name is not None else f"`{mask_name}`, False everywhere,"
        with self.rule(f"{words} must run{where}"):
            received = execution.to_arrays(execution.call(layer, nothing))
        for output, value in received.items():
            self.require(_is_finite(value), f"{words} must give no NaN in `{output}`{where}")
            if self.zero_when_masked and name is not None:
                self.require(not value.any(), f"{words} must give zeros in `{output}`{where}")


def _agrees(stored: typing.Any, value: typing.Any, default: typing.Any) -> bool:
    """Whether a config may hold `stored` for the argument `value`; asked of plain values, as others are serialized."""
    plain = (bool, int, float, str)
    if not isinstance(value, plain) or not (stored is None or isinstance(stored, plain)):
        return True
    if isinstance(value, str) and isinstance(stored, str):  # Keras stores "silu" for "swish", "same" for "SAME"
        return stored == value or stored != default
    return bool(stored == value)


def _is_finite(value: np.ndarray) -> bool:
    return bool(np.isfinite(value.astype(np.float64)).all())

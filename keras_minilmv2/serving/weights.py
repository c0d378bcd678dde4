"""Weights of an export: as they are, or stored smaller and restored when loaded."""

import uuid

import keras
import numpy as np
import tensorflow as tf

STORED_AS = ("float32", "float16", "int8")


def call_with_weights(model, stored_as):
    """Makes the function that an export calls a model with.

    Args:
        model: a built keras model.
        stored_as: str, one of `STORED_AS`. With `"float16"` and `"int8"`, matrices
            are stored so, int8 with a scale for each column, and become float32 again
            once, when the export is loaded: the files are smaller, speed is that of
            float32. Vectors, such as biases, are stored as they are.

    Returns:
        tuple of a function `(model or part of it, inputs) -> outputs`, in inference
        mode, and None, or the `tf.Module` of the stored variables, which an export
        archive has to keep though no signature reads them.
    """
    if stored_as == "float32":
        return lambda part, inputs: part(inputs, training=False), None
    weights = _RestoredWeights(model, stored_as)
    return weights.call, weights


class _RestoredWeights(tf.Module):
    """The variables of a model, with the matrices stored smaller."""

    def __init__(self, model, stored_as):
        super().__init__()
        self._restored = [
            _Matrix(variable, stored_as)
            if len(variable.shape) > 1 and keras.backend.is_float_dtype(variable.dtype)
            else _Plain(variable)
            for variable in model.variables
        ]
        self._place = {id(v): place for place, v in enumerate(model.variables)}

    def call(self, part, inputs):
        """Calls the model, or a part of it, with these weights."""
        trainable, others = (
            [self._restored[self._place[id(v)]].value() for v in variables]
            for variables in (part.trainable_variables, part.non_trainable_variables)
        )
        outputs, _ = part.stateless_call(trainable, others, inputs, training=False)
        return outputs


class _Plain(tf.Module):
    """A variable that is stored as it is."""

    def __init__(self, variable):
        super().__init__()
        self._variable = tf.Variable(variable.numpy(), trainable=False)

    def value(self):
        return self._variable.read_value()


class _Matrix(tf.Module):
    """A variable that is filled from a smaller one when the export is loaded."""

    def __init__(self, variable, stored_as):
        super().__init__()
        values = variable.numpy().astype("float32")
        scale = np.float32(1.0)
        if stored_as == "int8":
            scale = np.abs(values).max(axis=0, keepdims=True) / np.float32(127)
            scale[scale == 0] = 1
            values = np.rint(values / scale)
        self._stored = tf.Variable(values.astype(stored_as), trainable=False)
        self._scale = tf.Variable(scale, trainable=False)
        self._shape, self._dtype = values.shape, tf.as_dtype(variable.dtype)
        self._filled = _FilledVariable(self._shape, self._dtype, self._content)

    def _content(self):
        value = tf.cast(self._stored, tf.float32) * self._scale
        return tf.cast(value, self._dtype)

    def value(self):
        value = tf.raw_ops.ReadVariableOp(
            resource=self._filled.resource_handle, dtype=self._dtype
        )
        return tf.ensure_shape(value, self._shape)


class _FilledVariable(tf.saved_model.experimental.TrackableResource):
    """A variable that an export creates and fills by functions of its graph.

    Other variables are restored from a file. Loaders fill after they restored.
    """

    def __init__(self, shape, dtype, content):
        super().__init__()
        self._shape, self._dtype, self._content = shape, dtype, content
        # Two exports in one process must not fill one another's variables.
        self._name = f"filled_{uuid.uuid4().hex}"
        self._initialize()

    def _create_resource(self):
        return tf.raw_ops.VarHandleOp(
            dtype=self._dtype, shape=self._shape, shared_name=self._name
        )

    def _initialize(self):
        tf.raw_ops.AssignVariableOp(
            resource=self.resource_handle, value=self._content()
        )

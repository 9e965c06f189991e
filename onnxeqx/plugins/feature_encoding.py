"""What stands before and after the models of `ai.onnx.ml`: encoders, scalers, and maps, which are Python dictionaries.

Text and maps exist on the host only: a model with them runs eagerly.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from .._registry import op
from ..runtime import canonical_dtype, host_value
from .hookspecs import hookimpl

_DOMAIN = "ai.onnx.ml"


def _is_text(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind in "USO"


def _objects(items: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(len(items), object)
    array[:] = items
    return array.reshape(shape)


@op("ArrayFeatureExtractor", domain=_DOMAIN, since=1)
def array_feature_extractor(X, Y):
    """The elements `Y` along the last axis. A vector counts as one row.

    https://onnx.ai/onnx/operators/onnx_aionnxml_ArrayFeatureExtractor.html
    """
    found = X[..., Y.reshape(-1)]
    return found[None] if found.ndim == 1 else found


@op("Binarizer", domain=_DOMAIN, since=1)
def binarizer(X, *, threshold=0.0):
    """1 above the threshold, else 0. Any shape and numeric dtype.

    https://onnx.ai/onnx/operators/onnx_aionnxml_Binarizer.html
    """
    return jnp.greater(X, np.asarray(threshold).astype(X.dtype)).astype(X.dtype)


@op("Scaler", domain=_DOMAIN, since=1)
def scaler(X, *, offset=None, scale=None):
    """`(X - offset) * scale`, for all features or each. X: (batch, features) -> float32.

    https://onnx.ai/onnx/operators/onnx_aionnxml_Scaler.html
    """
    offset, scale = (np.asarray(value, np.float32) for value in (offset or (0.0,), scale or (1.0,)))
    return (X.astype(jnp.float32) - offset) * scale


@op("Normalizer", domain=_DOMAIN, since=1)
def normalizer(X, *, norm="MAX"):
    """Each row divided by its norm: "MAX", "L1" or "L2". X: (batch, features) or (features,) -> float32.

    https://onnx.ai/onnx/operators/onnx_aionnxml_Normalizer.html
    """
    x = X.astype(jnp.float32)
    norms = {
        "MAX": lambda: jnp.max(x, axis=-1, keepdims=True),  # not of the magnitudes, as in ONNX Runtime
        "L1": lambda: jnp.sum(jnp.abs(x), axis=-1, keepdims=True),
        "L2": lambda: jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True)),
    }
    size = norms[norm]()
    return x / jnp.where(size == 0, 1, size)


@op("Imputer", domain=_DOMAIN, since=1)
def imputer(
    X, *, imputed_value_floats=None, imputed_value_int64s=None, replaced_value_float=0.0, replaced_value_int64=0
):
    """The features where they are not `replaced_value` (NaN is found too), else the imputed value. X: (batch, features).

    https://onnx.ai/onnx/operators/onnx_aionnxml_Imputer.html
    """
    if jnp.issubdtype(X.dtype, jnp.floating):
        values = np.asarray(imputed_value_floats).astype(X.dtype)
        replaced = np.asarray(replaced_value_float, X.dtype)
        missing = jnp.isnan(X) if np.isnan(replaced) else jnp.equal(X, replaced)
    else:
        values, missing = np.asarray(imputed_value_int64s).astype(X.dtype), jnp.equal(X, replaced_value_int64)
    return jnp.where(missing, values, X)


@op("FeatureVectorizer", domain=_DOMAIN, since=1)
def feature_vectorizer(*X, inputdimensions=None):
    """The inputs side by side, cut or filled with zeros to these widths. Each: (batch, features) or (batch,) -> float32.

    https://onnx.ai/onnx/operators/onnx_aionnxml_FeatureVectorizer.html
    """
    columns = []
    for x, width in zip(X, inputdimensions or [None] * len(X), strict=False):
        x = x.reshape(x.shape[0], -1) if x.ndim > 1 else x.reshape(-1, 1)
        width = x.shape[1] if width is None else width
        columns.append(jnp.pad(x[:, :width], ((0, 0), (0, max(width - x.shape[1], 0)))).astype(jnp.float32))
    return jnp.concatenate(columns, axis=1)


@op("OneHotEncoder", domain=_DOMAIN, since=1)
def one_hot_encoder(X, *, cats_int64s=None, cats_strings=None, zeros=1):
    """1 at the place of the category along a new last axis, 0 elsewhere, float32. Any shape; numbers or text.

    With `zeros` 0, a value that is no category is refused where it is known.

    https://onnx.ai/onnx/operators/onnx_aionnxml_OneHotEncoder.html
    """
    if _is_text(X):
        found = np.asarray(X, object)[..., None] == _objects(_plain(cats_strings), (-1,))
    else:
        found = X[..., None].astype(canonical_dtype(np.int64)) == np.asarray(cats_int64s, canonical_dtype(np.int64))
    if not zeros and not bool(np.all(host_value(found.any(-1), "input 'X' of OneHotEncoder with zeros=0"))):
        raise ValueError("OneHotEncoder was given a value that is no category; set its attribute zeros to 1.")
    return jnp.asarray(found, jnp.float32)


@op("CategoryMapper", domain=_DOMAIN, since=1)
def category_mapper(X, *, cats_int64s=None, cats_strings=None, default_int64=-1, default_string="_Unused"):
    """Text as the integer at the same place, and integers as text. Any shape.

    https://onnx.ai/onnx/operators/onnx_aionnxml_CategoryMapper.html
    """
    texts, numbers = _plain(cats_strings), _plain(cats_int64s)
    if _is_text(X):
        return _mapped(X, dict(zip(texts, numbers, strict=True)), default_int64, np.int64)
    return _mapped(
        host_value(X, "input 'X' of CategoryMapper"), dict(zip(numbers, texts, strict=True)), default_string, object
    )


def _mapped(x: Any, table: Mapping[Any, Any], default: Any, dtype: Any) -> np.ndarray:
    items = [
        table.get(item.decode() if isinstance(item, bytes) else item, default)
        for item in np.asarray(x).reshape(-1).tolist()
    ]
    return _objects(items, np.shape(x)) if dtype is object else np.array(items, dtype).reshape(np.shape(x))


@op("LabelEncoder", domain=_DOMAIN, since=4)
def label_encoder(
    X,
    *,
    default_float=-0.0,
    default_int64=-1,
    default_string="_Unused",
    default_tensor=None,
    keys_floats=None,
    keys_int64s=None,
    keys_strings=None,
    keys_tensor=None,
    values_floats=None,
    values_int64s=None,
    values_strings=None,
    values_tensor=None,
):
    """The value of each key, or the default. Any shape; numbers or text on either side.

    https://onnx.ai/onnx/operators/onnx_aionnxml_LabelEncoder.html
    """
    keys = next(keys for keys in (keys_tensor, keys_strings, keys_int64s, keys_floats) if keys is not None)
    if values_tensor is not None:
        values, dtype = values_tensor, values_tensor.dtype
        absent = {"f": default_float, "i": default_int64}.get(dtype.kind, default_string)
        default = absent if default_tensor is None else np.asarray(default_tensor).reshape(-1)[0]
    elif values_strings is not None:
        values, default, dtype = values_strings, default_string, np.dtype(object)
    elif values_int64s is not None:
        values, default, dtype = values_int64s, default_int64, np.dtype(np.int64)
    else:
        values, default, dtype = values_floats, default_float, np.dtype(np.float32)
    if _is_text(X) or dtype.kind in "USO":
        table = {_not_nan(key): value for key, value in zip(_plain(keys), _plain(values), strict=True)}
        x = X if _is_text(X) else host_value(X, "input 'X' of LabelEncoder, whose values are text,")
        items = _objects([_not_nan(item) for item in np.asarray(x).reshape(-1).tolist()], np.shape(x))
        return _mapped(items, table, default, object if dtype.kind in "USO" else dtype)
    keys = np.asarray(keys).astype(X.dtype)
    hits = X[..., None] == keys
    hits = hits | (jnp.isnan(X)[..., None] & np.isnan(keys)) if keys.dtype.kind == "f" else hits
    chosen = jnp.asarray(np.asarray(values, dtype), canonical_dtype(dtype))[jnp.argmax(hits, axis=-1)]
    return jnp.where(hits.any(-1), chosen, jnp.asarray(default, chosen.dtype))


def _plain(items: Any) -> list[Any]:
    items = items.reshape(-1).tolist() if isinstance(items, np.ndarray) else items or ()
    return [item.decode() if isinstance(item, bytes) else item for item in items]


def _not_nan(key: Any) -> Any:
    """NaN is no key of a dictionary, as it does not equal itself."""
    return "nan" if isinstance(key, float) and np.isnan(key) else key


@op("LabelEncoder", domain=_DOMAIN, since=2, until=3)
def label_encoder_2(
    X,
    *,
    default_float=-0.0,
    default_int64=-1,
    default_string="_Unused",
    keys_floats=None,
    keys_int64s=None,
    keys_strings=None,
    values_floats=None,
    values_int64s=None,
    values_strings=None,
):
    """As the later `label_encoder`, without tensors as attributes.

    https://onnx.ai/onnx/operators/onnx_aionnxml_LabelEncoder.html
    """
    return label_encoder(**locals())


@op("LabelEncoder", domain=_DOMAIN, since=1, until=1)
def label_encoder_1(X, *, classes_strings=None, default_int64=-1, default_string="_Unused"):
    """Text as its place among the classes, and places as text. Any shape.

    https://onnx.ai/onnx/operators/onnx_aionnxml_LabelEncoder.html
    """
    places = list(range(len(_plain(classes_strings))))
    return category_mapper(
        X, cats_int64s=places, cats_strings=classes_strings, default_int64=default_int64, default_string=default_string
    )


@op("DictVectorizer", domain=_DOMAIN, since=1)
def dict_vectorizer(X, *, int64_vocabulary=None, string_vocabulary=None):
    """The values of a map in the order of the vocabulary, 0 or empty text for those it lacks -> (1, vocabulary), NumPy.

    https://onnx.ai/onnx/operators/onnx_aionnxml_DictVectorizer.html
    """
    vocabulary = _plain(int64_vocabulary if string_vocabulary is None else string_vocabulary)
    text = any(isinstance(value, str) for value in X.values())
    values = [X.get(word, "" if text else 0) for word in vocabulary]
    return _objects(values, (1, -1)) if text else np.array([values], np.asarray(list(X.values())).dtype)


@op("CastMap", domain=_DOMAIN, since=1)
def cast_map(X, *, cast_to="TO_FLOAT", map_form="DENSE", max_map=1):
    """The values of a map in the order of its keys, or ("SPARSE") each at the place that its key says -> (1, n), NumPy.

    https://onnx.ai/onnx/operators/onnx_aionnxml_CastMap.html
    """
    values = [X[key] for key in sorted(X)]
    if map_form == "SPARSE":
        values = [X.get(place, 0) for place in range(max_map)]
    if cast_to == "TO_STRING":
        return _objects([str(value) for value in values], (1, -1))
    return np.array([values], object).astype({"TO_FLOAT": np.float32, "TO_INT64": np.int64}[cast_to])


@op("ZipMap", domain=_DOMAIN, since=1)
def zip_map(X, *, classlabels_int64s=None, classlabels_strings=None):
    """A list with a dictionary for each row: label to score. X: (batch, classes), or (classes,) for one row.

    https://onnx.ai/onnx/operators/onnx_aionnxml_ZipMap.html
    """
    labels = _plain(classlabels_int64s if classlabels_strings is None else classlabels_strings)
    rows = X if isinstance(X, jax.core.Tracer) else np.asarray(X)
    rows = rows if rows.ndim > 1 else rows[None]
    return [dict(zip(labels, row, strict=True)) for row in rows]


@hookimpl
def onnxeqx_register_ops(registry):
    registry.add_module(__name__)

"""Text: NumPy arrays of Python strings, on the host. JAX has no arrays of text, so models that compute on it run eagerly."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .._registry import op
from ._operands import as_arrays
from .hookspecs import hookimpl


def _text(x: Any) -> np.ndarray:
    """An array of `str`: files hold text as UTF-8 bytes."""
    array = np.asarray(x, object)
    items = [item.decode() if isinstance(item, bytes) else str(item) for item in array.reshape(-1)]
    return _objects(items, array.shape)


def _objects(items: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(len(items), object)
    array[:] = items
    return array.reshape(shape)


@op("StringConcat", since=20, on_host=True)
def string_concat(X, Y):
    """The elements of `X` followed by those of `Y`, broadcast.

    https://onnx.ai/onnx/operators/onnx__StringConcat.html
    """
    return np.asarray(np.add(_text(X), _text(Y)), object)


@op("StringSplit", since=20, on_host=True)
def string_split(X, *, delimiter=None, maxsplit=None, n_outputs=1):
    """The pieces of each element, along a new last axis filled with empty text, and how many there are (int64).

    https://onnx.ai/onnx/operators/onnx__StringSplit.html
    """
    X = _text(X)
    pieces = [item.split(delimiter or None, -1 if maxsplit is None else maxsplit) for item in X.reshape(-1)]
    width = max(map(len, pieces), default=0)
    rows = [piece for row in pieces for piece in (*row, *[""] * (width - len(row)))]
    y = _objects(rows, (*X.shape, width))
    return (y, np.array([len(row) for row in pieces], np.int64).reshape(X.shape)) if n_outputs > 1 else y


@op("RegexFullMatch", since=20, on_host=True)
def regex_full_match(X, *, pattern=None):
    """Whether each element matches the pattern from its beginning to its end -> bool. RE2's syntax, as Python's `re` knows it.

    https://onnx.ai/onnx/operators/onnx__RegexFullMatch.html
    """
    compiled = re.compile(pattern or "")
    X = _text(X)
    return np.array([compiled.fullmatch(item) is not None for item in X.reshape(-1)], bool).reshape(X.shape)


@op("StringNormalizer", since=10, on_host=True)
def string_normalizer(X, *, case_change_action="NONE", is_case_sensitive=0, locale=None, stopwords=None):
    """Text without the stop words, in lower or upper case. X: (n,) or (1, n); what is left, or one empty element.

    https://onnx.ai/onnx/operators/onnx__StringNormalizer.html
    """
    X = _text(X)
    stops = {word if is_case_sensitive else word.lower() for word in stopwords or ()}
    kept = [item for item in X.reshape(-1) if (item if is_case_sensitive else item.lower()) not in stops]
    change = {"NONE": str, "LOWER": str.lower, "UPPER": str.upper}[case_change_action]
    kept = [change(item) for item in kept] or [""]
    return _objects(kept, (*X.shape[:-1], len(kept)))


@op("TfIdfVectorizer", since=9, on_host=True)
def tf_idf_vectorizer(
    X,
    *,
    max_gram_length,
    max_skip_count,
    min_gram_length,
    mode,
    ngram_counts,
    ngram_indexes,
    pool_int64s=None,
    pool_strings=None,
    weights=None,
):
    """How often each n-gram of a pool occurs in text or integers, with up to `max_skip_count` left out between its parts.

    X: (n,) or (batch, n) -> (features,) or (batch, features), float32: counts ("TF"), 1 or 0 times the weight ("IDF"), or both.

    https://onnx.ai/onnx/operators/onnx__TfIdfVectorizer.html
    """
    xp, X = (np, _text(X)) if pool_strings is not None else as_arrays(X)
    pool = np.asarray(pool_int64s, X.dtype) if pool_strings is None else _text(pool_strings)
    rows = X.reshape(1 if X.ndim == 1 else X.shape[0], -1)
    counts = xp.zeros((rows.shape[0], max(ngram_indexes) + 1), np.float32)
    first = 0
    for length, grams in enumerate(_grams_by_length(pool, ngram_counts), start=1):
        columns = list(ngram_indexes[first : first + len(grams)])
        first += len(grams)
        # Skipping between the parts of a single element means nothing.
        for skip in (
            range(1 if length == 1 else max_skip_count + 1) if min_gram_length <= length <= max_gram_length else ()
        ):
            counts = _added(xp, counts, columns, _occurrences(rows, grams, skip + 1))
    factors = np.ones(counts.shape[1], np.float32)
    if weights is not None:
        factors[list(ngram_indexes)] = weights
    result = {"TF": counts, "IDF": xp.where(counts > 0, factors, 0), "TFIDF": counts * factors}[mode]
    return result.reshape(*X.shape[:-1], -1)


def _grams_by_length(pool: np.ndarray, starts: Sequence[int]) -> Iterator[np.ndarray]:
    """The n-grams of a pool that holds all of length 1, then all of length 2, from the given starts: (grams, length) each."""
    for length, (start, end) in enumerate(zip(starts, (*starts[1:], len(pool)), strict=True), start=1):
        yield pool[start:end].reshape(-1, length)


def _occurrences(rows: Any, grams: np.ndarray, step: int) -> Any:
    """How often each n-gram occurs in each row with its parts `step` apart: (rows, grams), float32."""
    length = grams.shape[1]
    starts = np.arange(max(rows.shape[1] - (length - 1) * step, 0))
    windows = rows[:, starts[:, None] + np.arange(length) * step]
    return (windows[:, :, None] == grams).all(-1).sum(1).astype(np.float32)


def _added(xp: Any, counts: Any, columns: list[int], found: Any) -> Any:
    if xp is np:
        counts[:, columns] += found
        return counts
    return counts.at[:, columns].add(found)


@hookimpl
def onnxeqx_register_ops(registry):
    registry.add_module(__name__)

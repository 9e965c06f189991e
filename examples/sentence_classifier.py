"""A classifier of sentences: a BERT-like encoder, the mean of its embeddings, and a linear layer, in a plain Optax loop.

By default it tells from a sentence of documentation whether it is NumPy's or scikit-learn's, with a small, freshly drawn BERT and
a toy tokenizer that hashes words. With a trained encoder, such as a MiniLM exported to ONNX, give its tokenizer too:

usage: python examples/sentence_classifier.py [--model minilm.onnx --tokenizer tokenizer.json --lr 5e-5] [--epochs N]
"""

import argparse
import importlib
import inspect
import pathlib
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

import onnxeqx

REPOSITORY = pathlib.Path(__file__).parents[1]
NUMPY = [f"numpy{part}" for part in ("", ".fft", ".linalg", ".ma", ".polynomial", ".random")]
SKLEARN = [
    f"sklearn.{part}" for part in ("cluster", "datasets", "ensemble", "linear_model", "metrics", "preprocessing")
]
LENGTH, BATCH, TOY_VOCABULARY = 32, 32, 1000

Tokens = Mapping[str, np.ndarray]
"""`input_ids`, `attention_mask` and `token_type_ids`, each of shape `(sentences, LENGTH)`."""


class SentenceClassifier(eqx.Module):
    """Logits from the mean of an encoder's embeddings, those of padding aside."""

    encoder: Any
    head: eqx.nn.Linear

    def __init__(self, encoder: Any, classes: int, tokens: Tokens, *, key: PRNGKeyArray):
        self.encoder = encoder
        width = eqx.filter_eval_shape(self.embeddings, tokens).shape[-1]
        self.head = eqx.nn.Linear(width, classes, key=key)

    def embeddings(self, tokens: Tokens) -> Float[Array, "batch width"]:
        outputs = self.encoder(**{name: tokens[name] for name in self.encoder.input_names})
        hidden = outputs[0] if isinstance(outputs, tuple) else outputs
        mask = jnp.asarray(tokens["attention_mask"], hidden.dtype)[..., None]
        return (hidden * mask).sum(1) / mask.sum(1)

    def __call__(self, tokens: Tokens) -> Float[Array, "batch classes"]:
        return jax.vmap(self.head)(self.embeddings(tokens))


def small_bert() -> Any:
    """The encoder of the small BERT that this repository's tests have; its output is `(batch, length, width)`."""
    sys.path.append(str(REPOSITORY))
    from tests.sample_models import sample_model

    return onnxeqx.load_model(sample_model("bert_small.ts"), outputs=["mods.0.bert.encoder"])


def sentences(modules: list[str]) -> list[str]:
    """The sentences in the docstrings of what modules offer."""
    found: dict[str, None] = {}
    for module in map(importlib.import_module, modules):
        for name in sorted(module.__all__):
            for paragraph in (inspect.getdoc(getattr(module, name, None)) or "").split("\n\n"):
                text = " ".join(re.sub(r"[\w ]+\n-{3,}\n", "", paragraph).split())  # without its heading
                found |= dict.fromkeys(re.findall(r"(?:^|(?<=\. ))[A-Z][\w ,'()-]{40,160}\.(?= |$)", text))
    return list(found)


def hashed(texts: list[str]) -> Tokens:
    """Each word by the hash of its letters."""
    ids = np.zeros((len(texts), LENGTH), np.int32)
    for row, text in zip(ids, texts, strict=True):
        words = re.findall(r"\w+", text.lower())[:LENGTH]
        row[: len(words)] = [1 + zlib.crc32(word.encode()) % (TOY_VOCABULARY - 1) for word in words]
    return {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int32), "token_type_ids": np.zeros_like(ids)}


def tokenized(texts: list[str], path: pathlib.Path) -> Tokens:
    import tokenizers  # pip install tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    encoded = tokenizer.encode_batch(texts)
    parts = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    return {name: np.array([getattr(item, part) for item in encoded], np.int32) for name, part in parts.items()}


def rows_of(tokens: Tokens, rows: Any) -> Tokens:
    return {name: array[rows] for name, array in tokens.items()}


def batches(count: int, epochs: int) -> Iterator[np.ndarray]:
    """The rows of each batch; what does not fill the last one of an epoch is left out."""
    random = np.random.default_rng(0)
    for _ in range(epochs):
        yield from random.permutation(count)[: count // BATCH * BATCH].reshape(-1, BATCH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, help="an encoder whose first output is (batch, length, width)")
    parser.add_argument("--tokenizer", type=pathlib.Path, help="its tokenizer.json, as Hugging Face's models have")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--short", action="store_true", help="fewer epochs, for a quick look")
    options = parser.parse_args()
    if (options.model is None) != (options.tokenizer is None):
        parser.error("a model needs its own tokenizer: give both --model and --tokenizer, or none")

    known = [(text, label) for label, modules in enumerate((NUMPY, SKLEARN)) for text in sentences(modules)]
    shuffled = [known[i] for i in np.random.default_rng(0).permutation(len(known))]
    texts, labels = [text for text, _ in shuffled], np.array([label for _, label in shuffled], np.int32)
    tokens = tokenized(texts, options.tokenizer) if options.tokenizer else hashed(texts)
    cut = len(texts) * 4 // 5
    print(f"{cut} sentences to learn from, such as {texts[0]!r}")

    encoder = onnxeqx.load(options.model) if options.model else small_bert()
    model = SentenceClassifier(encoder, 2, rows_of(tokens, [0]), key=jax.random.key(0))
    optimizer = optax.adamw(options.lr)

    @eqx.filter_value_and_grad
    def loss_and_grads(model, tokens, labels):
        return optax.softmax_cross_entropy_with_integer_labels(model(tokens), labels).mean()

    @eqx.filter_jit
    def step(model, state, tokens, labels):
        loss, grads = loss_and_grads(model, tokens, labels)
        updates, state = optimizer.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, loss

    @eqx.filter_jit
    def accuracy(model):
        return jnp.mean(model(rows_of(tokens, slice(cut, None))).argmax(-1) == labels[cut:])

    before = accuracy(model)
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    for rows in batches(cut, 2 if options.short else options.epochs):
        model, state, _ = step(model, state, rows_of(tokens, rows), labels[rows])
    print(f"Accuracy on held-out sentences: {before:.3f} before, {accuracy(model):.3f} after.")
    print(f"Always giving the more frequent answer: {np.bincount(labels[cut:]).max() / len(labels[cut:]):.3f}.")


if __name__ == "__main__":
    main()

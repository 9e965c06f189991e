"""Texts as training data: tokens of fixed length, labels of tokens, and BERT's masking."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int

from .._errors import DataError
from .errors import ConfigError
from .losses import IGNORED

if TYPE_CHECKING:
    import tokenizers

MASK_TOKENS = ("[MASK]", "<mask>")
END_TOKENS = ("<|endoftext|>", "</s>", "[SEP]")
PADDING_TOKENS = ("[PAD]", "<pad>", "<|pad|>", *END_TOKENS[:2])

TEXTS_AT_ONCE = 1024
"""Texts that are tokenised together: what the library returns holds much more than the ids, so it must not pile up."""

MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1
"""Of the tokens that BERT predicts, those that become the mask, and those that become any other token."""


class Encoded(NamedTuple):
    """Tokens of texts.

    - `ids`: shape `(texts, positions)`, int32.
    - `mask`: 1 for tokens, 0 for padding; shape and dtype of `ids`.
    - `types`: 0 for the first text of a pair, 1 for the second; shape and dtype of `ids`.
    """

    ids: Int[np.ndarray, "texts positions"]
    mask: Int[np.ndarray, "texts positions"]
    types: Int[np.ndarray, "texts positions"]


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A `tokenizer.json` of Hugging Face's [tokenizers](https://huggingface.co/docs/tokenizers), for texts of fixed length.

    **Arguments:**

    - `path`: the file.
    - `max_length`: tokens of a text with the special ones; longer texts are cut, shorter ones are padded at their end.

    **Raises:** `DataError` if the file is missing or damaged, or if tokenizers is not installed; `ConfigError` if no token of a
    text has a place.
    """

    path: pathlib.Path
    max_length: int

    def __post_init__(self):
        self._check_length(pairs=False)

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Encoded:
        """Tokenises texts, or pairs of texts, with the special tokens that the file puts around them.

        **Arguments:**

        - `texts`: any number.
        - `pairs`: the second text of each pair, as many.

        **Returns:** arrays of shape `(texts, max_length)`.

        **Raises:** `DataError`, which names the row, if a text is not a `str`, or if there are not as many `pairs` as `texts`.
        """
        first = list(_checked(texts))
        if pairs is None:
            return Encoded(*self.arrays(first))
        self._check_length(pairs=True)
        if len(texts) != len(pairs):
            raise DataError(f"There are {len(texts)} first texts of pairs, but {len(pairs)} second ones.")
        return Encoded(*self.arrays(list(zip(first, _checked(pairs), strict=True))))

    @property
    def vocabulary_size(self) -> int:
        """The number of tokens, special ones included."""
        return self._padding.get_vocab_size()

    @functools.cached_property
    def pad_id(self) -> int:
        """What fills short texts: the file's choice, or a token that is meant for it, or 0."""
        tokenizer = _read_tokenizer(self.path)
        if tokenizer.padding is not None:
            return tokenizer.padding["pad_id"]
        return _first_id(tokenizer, PADDING_TOKENS) or 0

    @property
    def mask_id(self) -> int | None:
        """The token that stands for a hidden one, if there is one."""
        return _first_id(self._padding, MASK_TOKENS)

    @property
    def end_id(self) -> int | None:
        """The token behind the end of a text, if there is one."""
        return _first_id(self._padding, END_TOKENS)

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """The tokens that stand for no text."""
        added = self._padding.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    @functools.cached_property
    def _padding(self) -> "tokenizers.Tokenizer":
        """Cuts and pads to `max_length`."""
        tokenizer = _read_tokenizer(self.path)
        # By default at the end, whatever the file says: positions count from the first token.
        tokenizer.enable_padding(pad_id=self.pad_id, length=self.max_length)
        tokenizer.enable_truncation(self.max_length)
        return tokenizer

    @functools.cached_property
    def _whole(self) -> "tokenizers.Tokenizer":
        """Neither cuts nor pads."""
        tokenizer = _read_tokenizer(self.path)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def tokens(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """The tokens of each text, without special ones, however long."""
        texts = iter(texts)
        while batch := list(itertools.islice(texts, TEXTS_AT_ONCE)):
            yield from (encoding.ids for encoding in self._whole.encode_batch(batch, add_special_tokens=False))

    def arrays(self, inputs: Sequence[Any], *, words: bool = False) -> Int[np.ndarray, "kinds texts positions"]:
        """Ids, mask and types of texts or of pairs; of lists of words also the number of each piece's word, -1 for no word."""
        found = np.empty((4 if words else 3, len(inputs), self.max_length), np.int32)
        for row, encoding in enumerate(self._encodings(inputs, words)):
            found[:3, row] = encoding.ids, encoding.attention_mask, encoding.type_ids
            if words:
                found[3, row] = [-1 if word is None else word for word in encoding.word_ids]
        return found

    def _encodings(self, inputs: Sequence[Any], words: bool) -> Iterator["tokenizers.Encoding"]:
        for start in range(0, len(inputs), TEXTS_AT_ONCE):
            yield from self._padding.encode_batch(inputs[start : start + TEXTS_AT_ONCE], is_pretokenized=words)

    def _check_length(self, *, pairs: bool) -> None:
        special = self._padding.num_special_tokens_to_add(pairs)
        if self.max_length <= special:
            raise ConfigError(
                f"--max-length is {self.max_length}, but {self.path} puts {special} special tokens around "
                f"{'a pair of texts' if pairs else 'a text'}; choose at least {special + 1 + pairs}."
            )


def token_labels(
    tokenizer: Tokenizer, words: Sequence[Sequence[str]], labels: Sequence[Sequence[int]]
) -> tuple[Encoded, Int[np.ndarray, "texts positions"]]:
    """Tokens and their labels, for token classification: the first piece of a word has the word's label, all else has -100.

    **Arguments:**

    - `tokenizer`: cuts and pads.
    - `words`: of each text.
    - `labels`: the class of each word.

    **Returns:** the tokens, and labels of their shape, int32.

    **Raises:** `DataError`, which names the row, if a text has not as many labels as words, or if a word is not a `str`.
    """
    if len(words) != len(labels):
        raise DataError(f"There are words of {len(words)} texts, but labels of {len(labels)}.")
    for row, (line, line_labels) in enumerate(zip(words, labels, strict=True)):
        _check_words(row, line, line_labels)
    ids, mask, types, places = tokenizer.arrays(words, words=True)
    first_pieces = places >= 0
    first_pieces[:, 1:] &= places[:, 1:] != places[:, :-1]
    placed = np.full_like(ids, IGNORED)
    rows = np.nonzero(first_pieces)[0].tolist()
    placed[first_pieces] = [labels[row][word] for row, word in zip(rows, places[first_pieces].tolist(), strict=True)]
    return Encoded(ids, mask, types), placed


def blocks(tokenizer: Tokenizer, texts: Iterable[str]) -> Int[np.ndarray, "blocks positions"]:
    """Tokens of many texts, one behind the other, cut into blocks: for causal language modelling.

    Between two texts is the token that ends a text, if the vocabulary has one. What does not fill the last block is dropped.

    **Arguments:**

    - `tokenizer`: its `max_length` is the length of a block; special tokens are not put around texts.
    - `texts`: any number, of any length; read once.

    **Returns:** shape `(blocks, max_length)`, int32.

    **Raises:** `DataError` if a text is not a `str`, or if there is not one whole block.
    """
    end = [] if tokenizer.end_id is None else [tokenizer.end_id]
    parts = (part for ids in tokenizer.tokens(_checked(texts)) for part in (end, ids))
    joined = itertools.chain.from_iterable(itertools.islice(parts, 1, None))  # no end before the first text
    tokens = np.fromiter(joined, np.int32)
    count, length = len(tokens) // tokenizer.max_length, tokenizer.max_length
    if not count:
        raise DataError(
            f"The texts have {len(tokens)} tokens, less than one block of {length}; give more, or a smaller --max-length."
        )
    return tokens[: count * length].reshape(count, length)


def masked(
    ids: Int[np.ndarray, "texts positions"],
    mask: Int[np.ndarray, "texts positions"],
    *,
    mask_id: int,
    vocabulary_size: int,
    special: Collection[int],
    share: float,
    random: np.random.Generator,
) -> tuple[Int[np.ndarray, "texts positions"], Int[np.ndarray, "texts positions"]]:
    """Hides tokens that the network is to predict, as BERT does: https://arxiv.org/abs/1810.04805, section 3.1.

    Of the tokens to predict, 80 % become the mask, 10 % become any token, 10 % stay.

    **Arguments:**

    - `ids`: tokens.
    - `mask`: 1 for tokens, 0 for padding.
    - `mask_id`: the token that stands for a hidden one.
    - `vocabulary_size`: tokens from 0 to below it are put in place of others.
    - `special`: tokens that are never predicted.
    - `share`: of the other tokens of each text, those to predict, rounded; at least one, if there is any.
    - `random`: chooses.

    **Returns:** the tokens that the network sees; and the labels, -100 except for the tokens to predict. Both as `ids`, int32.
    """
    allowed = (mask != 0) & ~np.isin(ids, list(special))
    # The allowed tokens first, in an order by chance: each token's place in it says whether it is chosen.
    places = np.where(allowed, random.random(ids.shape), 2.0).argsort(1).argsort(1)
    wanted = np.maximum(np.rint(share * allowed.sum(1, keepdims=True)), 1)
    chosen = allowed & (places < wanted)
    fate = random.random(ids.shape)
    others = random.integers(vocabulary_size, size=ids.shape)
    replaced = np.where(fate < MASKED_SHARE, mask_id, np.where(fate < MASKED_SHARE + RANDOM_SHARE, others, ids))
    return np.where(chosen, replaced, ids).astype(np.int32), np.where(chosen, ids, IGNORED).astype(np.int32)


def model_inputs(names: Sequence[str], encoded: Encoded) -> dict[str, np.ndarray]:
    """The arrays that go to the inputs of a network, by what their names say.

    **Arguments:**

    - `names`: of the inputs: with "mask" in it for the mask, "type" or "segment" for the types, "position" for positions from 0;
        all others are for the tokens.
    - `encoded`: the tokens.

    **Returns:** an array of shape `(texts, positions)`, int32, for each name.

    **Raises:** `ConfigError` unless exactly one input is for the tokens.
    """
    token_input(names)
    positions = np.broadcast_to(np.arange(encoded.ids.shape[1], dtype=np.int32), encoded.ids.shape)
    arrays = {**encoded._asdict(), "positions": positions}
    return {name: arrays[_kind(name)] for name in names}


def token_input(names: Sequence[str]) -> str:
    """The input that takes the tokens; arguments and errors as of `model_inputs`."""
    tokens = [name for name in names if _kind(name) == "ids"]
    if len(tokens) != 1:
        found = f"{' and '.join(tokens)} all seem to take tokens" if tokens else "none seems to take tokens"
        raise ConfigError(f"Of the network's inputs ({', '.join(names)}), {found}, but exactly one must.")
    return tokens[0]


def _kind(name: str) -> str:
    parts = {"mask": "mask", "type": "types", "segment": "types", "position": "positions"}
    return next((kind for part, kind in parts.items() if part in name.lower()), "ids")


def _read_tokenizer(path: pathlib.Path) -> "tokenizers.Tokenizer":
    try:
        import tokenizers
    except ImportError:
        raise DataError(f"Reading {path} needs tokenizers; install it with: pip install 'onnxeqx[hf]'.") from None
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no narrower class
        raise DataError(
            f"{path} cannot be read as a tokenizer: {error}; give the tokenizer.json that belongs to the network."
        ) from error


def _first_id(tokenizer: "tokenizers.Tokenizer", names: Sequence[str]) -> int | None:
    """The first of the tokens that the vocabulary has."""
    ids = map(tokenizer.token_to_id, names)
    return next((token_id for token_id in ids if token_id is not None), None)


def _checked(texts: Iterable[str]) -> Iterator[str]:
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            found = "missing" if text is None else f"{text!r}, which is no text"
            raise DataError(f"The text of row {row} (the first is 0) is {found}; correct or remove the row.")
        yield text


def _check_words(row: int, words: Sequence[str], labels: Sequence[int]) -> None:
    if words is None or labels is None or not all(isinstance(word, str) for word in words):
        raise DataError(
            f"Row {row} (the first is 0) has no words, or no labels, or a word that is no text; correct or remove it."
        )
    if len(words) != len(labels):
        raise DataError(
            f"Row {row} (the first is 0) has {len(words)} words, but {len(labels)} labels; each word needs one."
        )

import pickle
import sys

import numpy as np
import pytest

from onnxeqx import DataError
from onnxeqx.training import ConfigError, text
from onnxeqx.training.text import Encoded, Tokenizer, blocks, masked, model_inputs, token_labels

tokenizers = pytest.importorskip("tokenizers")

SENTENCES = ["the cat sat on the mat", "don't let the dogs walk", "a mat and a cat"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def trained(path, model, trainer, template=None, **settings):
    """Saves a tokenizer trained on a few sentences, and gives the library's own object."""
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.train_from_iterator(SENTENCES, trainer)
    if template:
        made.post_processor = tokenizers.processors.TemplateProcessing(**template)
    for name, value in settings.items():
        getattr(made, name)(**value)
    made.save(str(path))
    return made


@pytest.fixture
def words(tmp_path):
    """Whole words, nothing around them, no token for padding."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"</s>": 9, **{w: i for i, w in enumerate("abcdefgh")}}))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "words.json"))
    return tmp_path / "words.json"


@pytest.fixture
def pieces(tmp_path):
    """WordPiece as BERT has it, and the library's own object that neither cuts nor pads."""
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=45, special_tokens=SPECIAL, show_progress=False)
    template = {
        "single": "[CLS] $A [SEP]",
        "pair": "[CLS] $A [SEP] $B:1 [SEP]:1",
        "special_tokens": [("[CLS]", 2), ("[SEP]", 3)],
    }
    path = tmp_path / "pieces.json"
    return path, trained(path, tokenizers.models.WordPiece(unk_token="[UNK]"), trainer, template)


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_texts_are_padded_and_cut(pieces):
    path, own = pieces
    tokenizer = Tokenizer(path, 12)
    long = " ".join(SENTENCES)
    encoded = tokenizer(["the cat", "", long])
    for array in encoded:
        assert array.dtype == np.int32
        assert array.shape == (3, 12)
    for row, sentence in enumerate(["the cat", ""]):
        ids = own.encode(sentence).ids
        assert encoded.ids[row].tolist() == ids + [0] * (12 - len(ids))
        assert encoded.mask[row].tolist() == [1] * len(ids) + [0] * (12 - len(ids))
    assert encoded.ids[2].tolist() == [*own.encode(long).ids[:11], own.token_to_id("[SEP]")]
    assert encoded.mask[2].all()
    assert not encoded.types.any()


def test_pairs_have_types(pieces):
    path, own = pieces
    encoded = Tokenizer(path, 16)(["the cat", "a"], ["the mat", "mat"])
    for row, pair in enumerate([("the cat", "the mat"), ("a", "mat")]):
        expected = own.encode(*pair)
        padding = [0] * (16 - len(expected.ids))
        assert encoded.ids[row].tolist() == expected.ids + padding
        assert encoded.types[row].tolist() == expected.type_ids + padding
    assert encoded.types.max() == 1


def test_batches_do_not_show(pieces, monkeypatch):
    tokenizer = Tokenizer(pieces[0], 10)
    sentences = [" ".join(SENTENCES[row % 3].split()[: row % 4]) for row in range(7)]
    together = tokenizer(sentences)
    together_blocks = blocks(tokenizer, sentences)
    monkeypatch.setattr(text, "TEXTS_AT_ONCE", 2)
    np.testing.assert_array_equal(tokenizer(sentences), together)
    np.testing.assert_array_equal(blocks(tokenizer, sentences), together_blocks)


def test_no_text_gives_no_rows(pieces):
    assert Tokenizer(pieces[0], 10)([]).ids.shape == (0, 10)


def test_what_the_file_says_of_cutting_and_padding_does_not_count_except_the_token(tmp_path):
    trainer = tokenizers.trainers.WordLevelTrainer(special_tokens=["[UNK]", "<fill>"], show_progress=False)
    path = tmp_path / "tokenizer.json"
    own = trained(
        path,
        tokenizers.models.WordLevel(unk_token="[UNK]"),
        trainer,
        enable_padding={"direction": "left", "pad_id": 1, "pad_token": "<fill>", "length": 99},
        enable_truncation={"max_length": 1},
    )
    tokenizer = Tokenizer(path, 4)
    assert tokenizer.pad_id == 1
    assert tokenizer(["the cat"]).ids.tolist() == [[own.token_to_id("the"), own.token_to_id("cat"), 1, 1]]
    assert blocks(tokenizer, ["the cat sat", "on"]).tolist() == [
        [own.token_to_id(word) for word in ("the", "cat", "sat", "on")]
    ]


def test_special_tokens_are_found(pieces, words):
    tokenizer = Tokenizer(pieces[0], 10)
    assert (tokenizer.pad_id, tokenizer.mask_id, tokenizer.end_id) == (0, 4, 3)
    assert tokenizer.special_ids == {0, 1, 2, 3, 4}
    assert tokenizer.vocabulary_size == pieces[1].get_vocab_size()
    plain = Tokenizer(words, 10)
    assert (plain.pad_id, plain.mask_id, plain.end_id) == (9, None, 9)
    assert plain.special_ids == frozenset()


def test_words_that_were_added_are_not_special(pieces):
    path, own = pieces
    own.add_tokens(["zebra"])
    own.save(str(path))
    tokenizer = Tokenizer(path, 10)
    assert tokenizer.special_ids == {0, 1, 2, 3, 4}
    assert tokenizer.vocabulary_size == own.token_to_id("zebra") + 1


def test_a_used_tokenizer_goes_to_other_processes(pieces):
    tokenizer = Tokenizer(pieces[0], 10)
    expected = tokenizer(SENTENCES)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(tokenizer))(SENTENCES), expected)


def test_missing_and_damaged_files_are_named(tmp_path, words, monkeypatch):
    with pytest.raises(DataError, match=r"none\.json cannot be read as a tokenizer"):
        Tokenizer(tmp_path / "none.json", 8)
    (tmp_path / "bad.json").write_text('{"model": ')
    with pytest.raises(DataError, match=r"bad\.json cannot be read as a tokenizer"):
        Tokenizer(tmp_path / "bad.json", 8)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match=r"pip install 'onnxeqx\[hf\]'"):
        Tokenizer(words, 8)


def test_no_place_for_a_token_is_refused(pieces):
    with pytest.raises(ConfigError, match=r"--max-length is 2, .* 2 special tokens around a text; choose at least 3"):
        Tokenizer(pieces[0], 2)
    tokenizer = Tokenizer(pieces[0], 3)
    assert tokenizer(["the cat"]).mask.all()
    with pytest.raises(ConfigError, match=r"3 special tokens around a pair of texts; choose at least 5"):
        tokenizer(["the"], ["cat"])


def test_what_is_no_text_is_named_by_its_row(pieces):
    tokenizer = Tokenizer(pieces[0], 8)
    with pytest.raises(DataError, match=r"row 1 .* is missing"):
        tokenizer(["a", None])
    with pytest.raises(DataError, match=r"row 0 .* is 3\.5, which is no text"):
        tokenizer(["a"], [3.5])
    with pytest.raises(DataError, match=r"row 2 .* is missing"):
        blocks(tokenizer, ["a", "b", None])
    with pytest.raises(DataError, match="2 first texts of pairs, but 1 second"):
        tokenizer(["a", "b"], ["c"])


# --- labels of tokens -------------------------------------------------------------------------------------------------


def test_the_first_piece_of_a_word_has_its_label(pieces):
    path, own = pieces
    sentences = [["the", "dogs", "don't", "walk"], [], ["sat", "a"]]
    labels = [[5, 6, 7, 8], [], [0, 1]]
    encoded, placed = token_labels(Tokenizer(path, 24), sentences, labels)
    assert placed.dtype == np.int32
    for row, (sentence, line) in enumerate(zip(sentences, labels, strict=True)):
        ids, expected = [2], [-100]
        for word, label in zip(sentence, line, strict=True):
            parts = own.encode(word, add_special_tokens=False).ids
            ids += parts
            expected += [label] + [-100] * (len(parts) - 1)
        assert encoded.ids[row].tolist() == ids + [3] + [0] * (23 - len(ids))
        assert placed[row].tolist() == expected + [-100] * (24 - len(expected))
    assert (placed[0] == -100).sum() > 24 - len(sentences[0]) - 1  # some word is of several pieces


def test_labels_of_words_that_are_cut_are_cut(pieces):
    _, placed = token_labels(Tokenizer(pieces[0], 4), [["the", "cat", "mat", "the"]], [[1, 2, 3, 4]])
    assert placed[0, 0] == placed[0, -1] == -100
    assert placed[0, 1] == 1
    assert not {3, 4} & set(placed[0].tolist())


@pytest.mark.parametrize(
    ("sentences", "labels", "reason"),
    [
        ([["a"], ["a", "b"]], [[0], [0]], r"Row 1 \(the first is 0\) has 2 words, but 1 labels"),
        ([["a"], ["a", None]], [[0], [0, 1]], "Row 1 .* no text"),
        ([["a"], None], [[0], [0]], "Row 1 .* no words"),
        ([["a"]], [[0], [1]], "words of 1 texts, but labels of 2"),
    ],
)
def test_words_without_labels_are_named(pieces, sentences, labels, reason):
    with pytest.raises(DataError, match=reason):
        token_labels(Tokenizer(pieces[0], 8), sentences, labels)


# --- language modelling -----------------------------------------------------------------------------------------------


def test_blocks_are_all_tokens_in_their_order(words):
    found = blocks(Tokenizer(words, 3), iter(["a b c d", "e", "f g h a b"]))
    np.testing.assert_array_equal(
        found, np.asarray([[0, 1, 2], [3, 9, 4], [9, 5, 6], [7, 0, 1]], np.int32), strict=True
    )
    assert blocks(Tokenizer(words, 5), iter(["a b c d", "e", "f g h a b"])).tolist() == [
        [0, 1, 2, 3, 9],
        [4, 9, 5, 6, 7],
    ]


def test_blocks_have_no_special_tokens_around_texts(pieces):
    path, own = pieces
    expected = [
        *own.encode(SENTENCES[0], add_special_tokens=False).ids,
        own.token_to_id("[SEP]"),
        *own.encode(SENTENCES[1], add_special_tokens=False).ids,
    ]
    found = blocks(Tokenizer(path, 4), SENTENCES[:2])
    assert found.ravel().tolist() == expected[: len(expected) // 4 * 4]


def test_less_than_a_block_is_refused(words):
    with pytest.raises(DataError, match="have 4 tokens, less than one block of 5"):
        blocks(Tokenizer(words, 5), ["a b", "c"])
    with pytest.raises(DataError, match="have 0 tokens"):
        blocks(Tokenizer(words, 5), [])


def masking(ids, mask, share, seed=0):
    settings = {"mask_id": 4, "vocabulary_size": 1000, "special": {0, 2, 3, 4}, "share": share}
    return masked(ids, mask, random=np.random.default_rng(seed), **settings)


def test_masking_takes_its_share_of_real_tokens_only():
    random = np.random.default_rng(1)
    ids = random.integers(5, 1000, (50, 40)).astype(np.int32)
    ids[:, 0], ids[:, 30] = 2, 3
    mask = np.ones_like(ids)
    mask[:, 31:] = ids[:, 31:] = 0
    ids[:, 31] = 77  # padding, whatever its token
    seen, labels = masking(ids, mask, 0.25)
    assert seen.dtype == labels.dtype == np.int32
    chosen = labels != -100
    assert (chosen.sum(1) == round(29 * 0.25)).all()
    assert not chosen[:, [0, *range(30, 40)]].any()
    np.testing.assert_array_equal(labels[chosen], ids[chosen])
    np.testing.assert_array_equal(seen[~chosen], ids[~chosen])
    assert chosen[:, 1:30].any(0).all()  # every place can be chosen


def test_masked_tokens_become_the_mask_or_others_or_stay():
    ids = np.random.default_rng(2).integers(5, 1000, (200, 100)).astype(np.int32)
    seen, labels = masking(ids, np.ones_like(ids), 0.5)
    chosen = labels != -100
    assert chosen.sum() == 10_000
    shares = [(seen == 4)[chosen].mean(), (seen == ids)[chosen].mean()]
    np.testing.assert_allclose(shares, [0.8, 0.1], atol=0.02)  # five deviations
    others = seen[chosen & (seen != 4) & (seen != ids)]
    assert others.min() < 50
    assert others.max() > 950
    assert others.max() < 1000


def test_masking_takes_at_least_one_token_if_there_is_any():
    ids = np.asarray([[2, 9, 3, 0], [2, 3, 0, 0], [2, 7, 8, 3]], np.int32)
    _, labels = masking(ids, (ids != 0).astype(np.int32), 0.01)
    assert (labels != -100).sum(1).tolist() == [1, 0, 1]


def test_masking_follows_the_seed():
    ids = np.full((4, 50), 9, np.int32)
    first, again, other = (masking(ids, np.ones_like(ids), 0.3, seed)[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


# --- inputs of networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("input_ids", "attention_mask", "token_type_ids", "position_ids"),
        ("unique_input:0", "input_mask:0", "segment_ids:0", "Positions"),
    ],
)
def test_inputs_are_told_by_their_names(names):
    encoded = Encoded(*(np.full((2, 3), value, np.int32) for value in (7, 1, 0)))
    inputs = model_inputs(names, encoded)
    assert tuple(inputs) == names
    for name, expected in zip(names, [*encoded, np.asarray([[0, 1, 2]] * 2, np.int32)], strict=True):
        np.testing.assert_array_equal(inputs[name], expected, strict=True)


def test_two_inputs_or_none_for_tokens_are_refused():
    encoded = Encoded(*np.zeros((3, 1, 2), np.int32))
    assert list(model_inputs(["tokens"], encoded)) == ["tokens"]
    with pytest.raises(ConfigError, match="input_ids and decoder_input_ids all seem to take tokens"):
        model_inputs(["input_ids", "attention_mask", "decoder_input_ids"], encoded)
    with pytest.raises(ConfigError, match="none seems to take tokens"):
        model_inputs(["attention_mask"], encoded)

"""The tokenizer against open_clip's, and what it keeps when its vocabulary is cut."""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from grmp_score.errors import ConfigError
from grmp_score.model.tokenizer import Tokenizer

TEXTS = [
    "",
    "X X X X high quality.",
    "X X X X low quality.",
    "a photo of a still-life",
    "It's   the CAT's\tpyjamas &amp; more!!",
    "naïve café, 日本語 and 🦀",
    "12345 numbers 3.14",
    "soft-coated wheaten terrier",
    "word " * 200,
]
SIZES = [514, 515, 1024, 8192, 49407, 49408]


@lru_cache(maxsize=1)
def reference() -> SimpleTokenizer:
    """open_clip's own tokenizer."""
    return SimpleTokenizer()


@lru_cache(maxsize=8)
def tokenizer(size: int) -> Tokenizer:
    """One shared tokenizer per size."""
    return Tokenizer(size, 32)


@pytest.mark.parametrize("context_length", [2, 8, 77])
def test_full_vocabulary_equals_open_clip(context_length: int) -> None:
    """With all 49,408 ids the rows are open_clip's, truncated texts included."""
    ours = Tokenizer(context_length=context_length)(TEXTS)
    assert ours.dtype == torch.int64
    assert torch.equal(ours, reference()(TEXTS, context_length=context_length))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_full_vocabulary_encodes_any_text_as_open_clip(text: str) -> None:
    """Whatever the text, the full vocabulary gives open_clip's ids."""
    assert tokenizer(49408).encode(text) == reference().encode(text)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(SIZES), st.text(max_size=60))
def test_any_text_encodes_at_any_size_and_decodes_to_the_same(size: int, text: str) -> None:
    """A cut vocabulary spells every text, and spells it like the full one."""
    ids = tokenizer(size).encode(text)
    assert all(0 <= i < size for i in ids)
    assert tokenizer(size).decode(ids) == reference().decode(reference().encode(text))


@pytest.mark.parametrize("size", SIZES)
def test_special_tokens_are_the_two_largest(size: int) -> None:
    """Start is N - 2 and end N - 1, so argmax finds the end of every row, truncated or not."""
    t = tokenizer(size)
    assert (t.sot_token_id, t.eot_token_id) == (size - 2, size - 1)
    rows = t(TEXTS)
    assert rows.shape == (len(TEXTS), 32)
    assert (rows[:, 0] == size - 2).all()
    for row in rows:
        end = int(row.argmax())
        assert row[end] == size - 1
        assert (row[end + 1 :] == 0).all()
        assert (row == size - 1).sum() == 1
    assert rows[-1, -1] == size - 1


def test_words_of_the_kept_merges_keep_their_ids() -> None:
    """A cut leaves the ids of frequent words as they are in CLIP."""
    full, small = tokenizer(49408), tokenizer(8192)
    for text in ("a photo of a animal", "high quality", "low quality", "sharp"):
        assert small.encode(text) == full.encode(text)


def test_rare_words_are_spelled_in_pieces() -> None:
    """A word whose merge was cut takes more tokens and still comes back whole."""
    small = tokenizer(8192)
    assert tokenizer(49408).encode("cityscape") == [40808]
    assert len(small.encode("cityscape")) > 1
    assert small.decode(small.encode("cityscape")) == "cityscape "


def test_smallest_vocabulary_spells_bytes() -> None:
    """With no merges a word is its bytes, the last one marked as the end of the word."""
    assert tokenizer(514).decode([*tokenizer(514).encode("abc")]) == "abc "
    assert len(tokenizer(514).encode("abc")) == 3


def test_special_strings_are_special_tokens_at_any_size() -> None:
    """The spelled-out special tokens encode to the special ids, as in open_clip."""
    assert tokenizer(1024).encode("<start_of_text> a <end_of_text>")[::2] == [1022, 1023]


def test_truncation_keeps_the_beginning_and_the_end_token() -> None:
    """A long text loses its tail, not its end of text."""
    small = Tokenizer(1024, 6)
    row = small("one two three four five six seven eight")[0].tolist()
    ids = small.encode("one two three four five six seven eight")
    assert row == [1022, *ids[:4], 1023]


def test_single_text_and_empty_list() -> None:
    """One string is a batch of one; no string is an empty batch."""
    t = tokenizer(1024)
    assert torch.equal(t("a cat"), t(["a cat"]))
    assert t([]).shape == (0, 32)


def test_two_sizes_do_not_disturb_each_other() -> None:
    """Making a small tokenizer changes neither a large one nor open_clip's own."""
    before = reference()("a photo of a cityscape")
    large = Tokenizer()
    Tokenizer(600)("a photo of a cityscape")
    assert torch.equal(large("a photo of a cityscape"), before)
    assert torch.equal(reference()("a photo of a cityscape"), before)


@pytest.mark.parametrize(
    ("size", "length", "message"),
    [(513, 77, "514..49408"), (49409, 77, "514..49408"), (1024, 1, "at least 2")],
)
def test_arguments_out_of_range(size: int, length: int, message: str) -> None:
    """Sizes that cannot work are refused."""
    with pytest.raises(ConfigError, match=message):
        Tokenizer(size, length)


def test_unknown_id_is_a_key_error() -> None:
    """An id outside the vocabulary cannot be decoded."""
    with pytest.raises(KeyError):
        tokenizer(1024).decode([1024])


def test_import_is_light() -> None:
    """Importing the module loads neither torch nor open_clip."""
    code = "import sys, grmp_score.model.tokenizer; sys.exit('torch' in sys.modules or 'open_clip' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_encoding_needs_no_other_part_of_open_clip() -> None:
    """Its package, and with it torchvision and timm, is not imported."""
    code = (
        "import sys; from grmp_score.model.tokenizer import Tokenizer; Tokenizer(600)('a cat');"
        "print({'open_clip', 'torchvision', 'timm'} & sys.modules.keys())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"set()\n"


def test_repr_names_the_settings() -> None:
    """The representation says what the tokenizer is."""
    assert repr(tokenizer(1024)) == "Tokenizer(vocab_size=1024, context_length=32)"

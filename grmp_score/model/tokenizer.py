"""CLIP's byte-pair tokenizer, optionally with only the first part of its vocabulary.

The vocabulary is CLIP's own (Radford et al., arXiv 2103.00020), read from the file that open_clip ships. Its
merges are ordered by frequency, so a small model keeps the first ones and leaves out the embeddings of rare
words, which are then spelled with shorter pieces: no text becomes impossible to encode.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from grmp_score.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

CLIP_VOCAB_SIZE = 49408
CLIP_CONTEXT_LENGTH = 77
MIN_VOCAB_SIZE = 514  # 256 byte symbols, each also as word end, and the two special tokens


class Tokenizer:
    """Text -> token ids of a CLIP text tower.

    Ids 0..511 are the byte symbols, 512..vocab_size - 3 the first `vocab_size - 514` merges of CLIP, then
    come start and end of text. End of text is always the largest id, so the argmax pooling of CLIP finds
    it. With the full vocabulary of 49,408 the ids are exactly open_clip's.

    Attributes:
        vocab_size: number of ids, including the two special tokens.
        context_length: length of every encoded row.
        sot_token_id: id of start of text, `vocab_size - 2`.
        eot_token_id: id of end of text, `vocab_size - 1`.
    """

    def __init__(self, vocab_size: int = CLIP_VOCAB_SIZE, context_length: int = CLIP_CONTEXT_LENGTH) -> None:
        """Load the vocabulary (about 0.2 s the first time).

        Args:
            vocab_size: 514..49408.
            context_length: at least 2, room for start and end of text.

        Raises:
            ConfigError: an argument is out of range.
        """
        if not MIN_VOCAB_SIZE <= vocab_size <= CLIP_VOCAB_SIZE:
            raise ConfigError(f"vocab_size: expected {MIN_VOCAB_SIZE}..{CLIP_VOCAB_SIZE}, got {vocab_size}")
        if context_length < 2:
            raise ConfigError(f"context_length: expected at least 2, got {context_length}")
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.sot_token_id = vocab_size - 2
        self.eot_token_id = vocab_size - 1
        self._bpe = _truncated_bpe(vocab_size)

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, context_length={self.context_length})"

    def encode(self, text: str) -> list[int]:
        """Encode one text without special tokens, padding or truncation.

        Text is cleaned as in CLIP first (mojibake repaired, HTML entities resolved, white space collapsed,
        lower case).

        Args:
            text: any string.

        Returns:
            Ids in 0..vocab_size - 1. The literal strings "<start_of_text>" and "<end_of_text>" give the
            special tokens, as in open_clip.
        """
        return [int(i) for i in self._bpe.encode(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Spell token ids as text; the inverse of `encode` up to cleaning and white space.

        Args:
            ids: ids in 0..vocab_size - 1. Special tokens are spelled out, as open_clip does; strip padding
                first, for id 0 is also the symbol "!".

        Returns:
            Text with a space after each word.

        Raises:
            KeyError: an id is outside the vocabulary.
        """
        return str(self._bpe.decode([int(i) for i in ids]))

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Encode texts to rows of a fixed length.

        Args:
            texts: one text or B texts.

        Returns:
            int64 [B, context_length]: start of text, the text, end of text, zeros. A text that is too long is
            cut and still ends with end of text.
        """
        import torch

        rows = [texts] if isinstance(texts, str) else list(texts)
        out = torch.zeros(len(rows), self.context_length, dtype=torch.long)
        for row, text in zip(out, rows, strict=True):
            ids = [self.sot_token_id, *self.encode(text)[: self.context_length - 2], self.eot_token_id]
            row[: len(ids)] = torch.tensor(ids)
        return out


def _open_clip_tokenizer() -> ModuleType:
    """open_clip's module `tokenizer` without its package, whose import takes seconds (torchvision, timm)."""
    package = find_spec("open_clip")
    if package is None or package.origin is None:
        raise RuntimeError("open_clip_torch, which grmp_score needs, is not installed; install it")
    file = Path(package.origin).with_name("tokenizer.py")
    spec = spec_from_file_location("grmp_score.model._open_clip_tokenizer", file)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@lru_cache(maxsize=4)
def _truncated_bpe(vocab_size: int) -> Any:
    """open_clip's `SimpleTokenizer` with its tables cut to the first `vocab_size - 514` merges."""
    bpe = _open_clip_tokenizer().SimpleTokenizer()
    specials = [bpe.decoder[i] for i in bpe.all_special_ids]
    if len(bpe.encoder) != CLIP_VOCAB_SIZE or len(specials) != 2:
        raise RuntimeError(
            f"open_clip's CLIP vocabulary: expected {CLIP_VOCAB_SIZE} ids with 2 special tokens, "
            f"got {len(bpe.encoder)} with {len(specials)}; install a supported open_clip_torch"
        )
    if vocab_size == CLIP_VOCAB_SIZE:
        return bpe
    # A merge produces only symbols that earlier merges made, so dropping the tail leaves a closed vocabulary.
    symbols = [bpe.decoder[i] for i in range(vocab_size - 2)] + specials
    bpe.encoder = {symbol: i for i, symbol in enumerate(symbols)}
    bpe.decoder = dict(enumerate(symbols))
    bpe.bpe_ranks = {pair: rank for pair, rank in bpe.bpe_ranks.items() if rank < vocab_size - MIN_VOCAB_SIZE}
    bpe.all_special_ids = [vocab_size - 2, vocab_size - 1]
    bpe.sot_token_id, bpe.eot_token_id = bpe.all_special_ids
    bpe.vocab_size = vocab_size
    return bpe

"""Tokenizer of ChatGLM-6B (v1): sentencepiece `ice_text.model`, white space as pieces of its own (chatglm.md 10, 11)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import PreTrainedTokenizer

from xllm_speech.base.errors import CheckpointError
from xllm_speech.base.files import atomic_write

VOCABULARY_FILE = "ice_text.model"
NEWLINE, TAB = "<n>", "<|tab|>"
LONGEST_BLANK = 80
# In the order of the released model's ids, which begin at 130 000; the others of its pieces for control follow text.
CONTROL_PIECES = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
_BLANKS = re.compile(f" {{2,{LONGEST_BLANK}}}")
_IMAGE = re.compile(r"<image_(\d+)>")
_WHITE = re.compile(r"<n>|<\|tab\|>|<\|blank_(\d+)\|>")


def blank_piece(count: int) -> str:
    """The piece for a run of `count` blanks, 2 to 80."""
    return f"<|blank_{count}|>"


def pack_white_space(text: str) -> str:
    """Newlines, tabs and runs of blanks as their pieces; a run of more than 80 blanks is cut from the left."""
    text = text.replace("\n", NEWLINE).replace("\t", TAB)
    return _BLANKS.sub(lambda run: blank_piece(len(run[0])), text)


def unpack_white_space(text: str) -> str:
    """The inverse of `pack_white_space`."""
    def unpack(piece: re.Match[str]) -> str:
        return " " * int(piece[1]) if piece[1] else {NEWLINE: "\n", TAB: "\t"}[piece[0]]

    return _WHITE.sub(unpack, text)


class ChatGLMTokenizer(PreTrainedTokenizer):
    """Text -> ids; a prompt is framed as text `[gMASK]` `<sop>`, a pair as text `[gMASK]` `<sop>` answer `<eop>`.

    Batches are padded on the left. `from_pretrained` takes an unmodified official folder.

    Args:
        vocab_file: path of the sentencepiece model. num_image_tokens: ids in front of the text's, 20 000 in the first
            release. unk_token, bos_token, eos_token, pad_token, mask_token, gmask_token: pieces of the model.

    Raises:
        CheckpointError: no sentencepiece model there, or it lacks one of these pieces.
    """

    vocab_files_names = {"vocab_file": VOCABULARY_FILE}  # noqa: RUF012 - read by transformers under this name
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "left"

    def __init__(
        self,
        vocab_file: str,
        num_image_tokens: int = 0,
        unk_token: str = "<unk>",
        bos_token: str = "<sop>",
        eos_token: str = "<eop>",
        pad_token: str = "<pad>",
        mask_token: str = "[MASK]",
        gmask_token: str = "[gMASK]",
        **kwargs: Any,
    ) -> None:
        self.sp_model = sentencepiece.SentencePieceProcessor()
        try:
            self.sp_model.Load(vocab_file)
        except (OSError, RuntimeError, TypeError) as error:
            raise CheckpointError(f"{vocab_file}: not a sentencepiece model; get {VOCABULARY_FILE} anew") from error
        self.vocab_file, self.num_image_tokens = vocab_file, num_image_tokens
        eos_token = kwargs.pop("eop_token", eos_token)  # the first release calls it so, and `</s>` its eos_token
        for piece in (unk_token, bos_token, eos_token, pad_token, mask_token, gmask_token):
            if not self._is_piece(str(piece)):
                raise CheckpointError(f"{vocab_file}: holds no piece {piece}; it is not the model of a ChatGLM")
        # A saved folder repeats the ids of the pieces above; they follow from the model and num_image_tokens.
        added = kwargs.pop("added_tokens_decoder", None) or {}
        kwargs["added_tokens_decoder"] = {index: token for index, token in added.items() if not self._is_piece(str(token))}
        super().__init__(
            num_image_tokens=num_image_tokens, unk_token=unk_token, bos_token=bos_token, eos_token=eos_token,
            pad_token=pad_token, mask_token=mask_token, gmask_token=gmask_token, **kwargs,
        )

    def _is_piece(self, token: str) -> bool:
        return self.sp_model.IdToPiece(self.sp_model.PieceToId(token)) == token

    @property
    def vocab_size(self) -> int:
        """Ids of pictures and text together."""
        return self.num_image_tokens + self.sp_model.GetPieceSize()

    def get_vocab(self) -> dict[str, int]:
        """Every piece with its id."""
        return {self._convert_id_to_token(index): index for index in range(self.vocab_size)} | self.added_tokens_encoder

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return self.sp_model.EncodeAsPieces(pack_white_space(text))

    def _convert_token_to_id(self, token: str) -> int:
        if self.num_image_tokens and (image := _IMAGE.fullmatch(token)):
            return int(image[1])
        return self.num_image_tokens + self.sp_model.PieceToId(token)

    def _convert_id_to_token(self, index: int) -> str:
        if index < self.num_image_tokens:
            return f"<image_{index}>"
        if index >= self.vocab_size:  # the head is wider than the sentencepiece model
            return str(self.unk_token)
        return self.sp_model.IdToPiece(index - self.num_image_tokens)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Pieces -> text, white space unpacked."""
        return unpack_white_space(self.sp_model.DecodePieces(list(tokens)))

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Text `[gMASK]` `<sop>`, and with a second sequence that and `<eop>` behind."""
        framed = [*token_ids_0, self.convert_tokens_to_ids(str(self.gmask_token)), self.bos_token_id]
        return framed if token_ids_1 is None else [*framed, *token_ids_1, self.eos_token_id]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 where `build_inputs_with_special_tokens` puts a token of its own."""
        if already_has_special_tokens:
            special = set(self.all_special_ids)
            return [int(index in special) for index in token_ids_0]
        mask = [0] * len(token_ids_0) + [1, 1]
        return mask if token_ids_1 is None else [*mask, *[0] * len(token_ids_1), 1]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Zeros: the model knows no segments."""
        return [0] * len(self.build_inputs_with_special_tokens(token_ids_0, token_ids_1))

    def encode_plain(self, text: str) -> list[int]:
        """Ids of text alone: a piece for control that a user types, such as `<sop>`, is spelt out and controls nothing."""
        control = set(CONTROL_PIECES) | set(self.all_special_tokens)
        pattern = "|".join(re.escape(piece) for piece in sorted(control, key=len, reverse=True))
        ids: list[int] = []
        # Cut behind the first character of every such piece: neither part is a piece any more.
        start = 0
        for cut in [found.start() + 1 for found in re.finditer(pattern, text)] + [len(text)]:
            if start == 0:
                ids += self._ids(text[:cut])
            elif start < cut:
                # sentencepiece puts a blank before every text; behind a newline it does not stand before ours
                ids += self._ids("\n" + text[start:cut])[len(self._ids("\n")) :]
            start = cut
        return ids

    def _ids(self, text: str) -> list[int]:
        return [self.num_image_tokens + index for index in self.sp_model.EncodeAsIds(pack_white_space(text))]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the sentencepiece model into a folder; returns its path."""
        name = VOCABULARY_FILE if filename_prefix is None else f"{filename_prefix}-{VOCABULARY_FILE}"
        with atomic_write(Path(save_directory) / name, "wb") as stream:
            stream.write(self.sp_model.serialized_model_proto())
        return (str(Path(save_directory) / name),)


def train_chatglm_tokenizer(
    lines: list[str], folder: str | Path, vocab_size: int = 0, model_type: str = "char"
) -> ChatGLMTokenizer:
    """A small tokenizer with all pieces for control and white space, saved into `folder` and returned.

    Args:
        lines: text whose characters are all to be known. vocab_size: 0 takes all characters (model_type char only).
        model_type: of sentencepiece: char | bpe | unigram.
    """
    import io

    blanks = [blank_piece(count) for count in range(LONGEST_BLANK, 1, -1)]
    packed = [line.replace("\n", " ").replace("\t", " ") for line in lines]
    size = {"vocab_size": vocab_size} if vocab_size else {"use_all_vocab": True}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(packed), model_writer=model, model_type=model_type, **size, character_coverage=1.0,
        user_defined_symbols=[NEWLINE, TAB, *blanks, *CONTROL_PIECES], pad_id=3, pad_piece="<pad>",
        normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=bool(vocab_size),
        minloglevel=2, num_threads=1,
    )
    path = Path(folder) / VOCABULARY_FILE
    with atomic_write(path, "wb") as stream:
        stream.write(model.getvalue())
    tokenizer = ChatGLMTokenizer(str(path))
    tokenizer.save_pretrained(str(folder))
    return tokenizer

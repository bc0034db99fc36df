"""The tiny model's tokenizer: one token a word of the tiny world, bytes for everything else, so no text is unknown.

Each fixed block of the project's prompts has one token of its own, so that a model of under a million parameters runs
the very templates that Qwen3 runs at the price of six tokens. Reserved rows leave room for blocks of later prompts.
Spaces before words belong to the word (as in SentencePiece); a newline is a token. Two limits come with that: the space
mark itself (U+2581) reads as a space, and a word glued to a fixed block comes back with a space between.
"""

from __future__ import annotations

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from memfactory.common.bank_prompts import ANSWER_FROM_MEMORIES, EXTRACT_LINES, MANAGE_LINES
from memfactory.common.prompts import NO_MEMORY, PROMPTS, blocks
from memfactory.common.rmm_prompts import CHOOSE_LINES
from memfactory.data.generators.world import words

END_OF_TEXT, END_OF_TURN = "<|endoftext|>", "<|im_end|>"
USER, ASSISTANT = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
NUM_RESERVED = 32
"""Rows kept for blocks of later prompts, those that the bank's prompts have taken since included."""

CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


def make_tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer from the world's words and the project's prompts; deterministic."""
    space = "▁"
    vocabulary: dict[str, int] = {}
    pieces = [space + word for word in words()]
    pieces += [space, space + "\n", *(f"<0x{byte:02X}>" for byte in range(256))]
    for piece in pieces:
        vocabulary.setdefault(piece, len(vocabulary))
    # No merges and `ignore_merges`: a word of the vocabulary is one token, any other falls apart into bytes.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace(replacement=space, prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(space, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Replace(Regex(" ?\n ?"), "\n"),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = [END_OF_TEXT, END_OF_TURN, "<|im_start|>", USER, ASSISTANT]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    fixed = dict.fromkeys(piece for template in PROMPTS.values() for piece in blocks(template))
    # The bank's blocks took the first of the rows that were reserved when models/tiny was made, the reranker's the next: no other id
    # moved.
    later = dict.fromkeys(piece for template in (EXTRACT_LINES, MANAGE_LINES, ANSWER_FROM_MEMORIES) for piece in blocks(template))
    bank = [piece for piece in later if piece not in fixed]
    chosen = dict.fromkeys(piece for piece in blocks(CHOOSE_LINES) if piece not in {*fixed, *bank})
    reserved = [f"<|reserved_{n}|>" for n in range(len(bank) + len(chosen), NUM_RESERVED)]
    texts = [NO_MEMORY, *fixed, *bank, *chosen, *reserved]
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in texts])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )

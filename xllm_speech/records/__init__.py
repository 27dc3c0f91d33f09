"""Layer 1: the records that pass between rooms; each checks its own shapes where it is made.

Letters: B batch, T frames, S steps, U units, L tokens, N memory positions or media items, D width, F mel bins, C channels,
Q queries, H width of the LLM.
"""

from xllm_speech.records.audio import FbankBatch, PixelBatch
from xllm_speech.records.batch import AsrBatch, Memory
from xllm_speech.records.hypothesis import Hypothesis, TimedToken
from xllm_speech.records.llm import AnswerLosses, ConversationBatch, LlmInput, SlotEmbeds
from xllm_speech.records.manifest import Conversation, ConversationItem, Message, Utterance
from xllm_speech.records.media import ClipBatch, TextBatch, WaveBatch
from xllm_speech.records.speech import AsrLosses, CifOut, EncoderOut

__all__ = [
    "AnswerLosses", "AsrBatch", "AsrLosses", "CifOut", "ClipBatch", "Conversation", "ConversationBatch", "ConversationItem",
    "EncoderOut", "FbankBatch", "Hypothesis", "LlmInput", "Memory", "Message", "PixelBatch", "SlotEmbeds", "TextBatch",
    "TimedToken", "Utterance", "WaveBatch",
]

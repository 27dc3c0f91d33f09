"""Figures of the X-LLM paper that the report shows beside its own (system.md, section 7)."""

from __future__ import annotations

# Table 4, character error rate in %: test set -> model -> condition. Two figures: before and after fine-tuning on
# instructions for recognition.
TABLE_4: dict[str, dict[str, dict[str, str]]] = {
    "test-ios": {"cif_asr": {"S": "6.0"}, "llm_asr": {"S": "8.7"}},
    "test-android": {"cif_asr": {"S": "6.4"}, "llm_asr": {"S": "9.0"}},
    "test-mic": {"cif_asr": {"S": "6.4"}, "llm_asr": {"S": "9.4"}},
    "test-orig": {"cif_asr": {"S": "2.8", "S+V": "1.7"}, "llm_asr": {"S": "3.4", "S+V": "4.7 / 4.3"}},
    "test-art": {"cif_asr": {"S": "6.0", "S+V": "5.3"}, "llm_asr": {"S": "4.7", "S+V": "6.8 / 6.3"}},
}
# Table 1, score relative to GPT-4 (text only) in %: conversation, detail, reasoning, all.
TABLE_1: dict[str, tuple[str, str, str, str]] = {
    "X-LLM": ("85.4", "83.5", "84.6", "84.5"),
    "X-LLM w/ 4M": ("74.8", "83.7", "86.5", "81.9"),
    "X-LLM w/ 4M, no init": ("64.7", "71.9", "85.0", "73.8"),
}

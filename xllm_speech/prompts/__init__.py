"""Layer 3: prompts: templates and instructions as data, plans of token ids, and the splice of media into embeddings."""

from xllm_speech.prompts.instructions import INSTRUCTIONS, sample_instruction, with_caption, with_instructions
from xllm_speech.prompts.plan import PromptFraming, PromptPlan, PromptTokenizer, SlotRun, SpliceReport, list_media, plan_prompt
from xllm_speech.prompts.splice import Spliced, assemble, splice_batch
from xllm_speech.prompts.templates import CHINESE, ENGLISH, PLAIN, TAGS, PromptStyle, PromptTemplate, Tag, find_template

__all__ = [
    "CHINESE", "ENGLISH", "INSTRUCTIONS", "PLAIN", "TAGS", "PromptFraming", "PromptPlan", "PromptStyle", "PromptTemplate",
    "PromptTokenizer", "SlotRun", "SpliceReport", "Spliced", "Tag", "assemble", "find_template", "list_media", "plan_prompt",
    "sample_instruction", "splice_batch", "with_caption", "with_instructions",
]

"""Layer 3: the LLM. ChatGLM-6B (v1) natively, any other causal LM through `transformers`; frozen, fed with embeddings."""

from xllm_speech.llm.chatglm_config import ChatGLMConfig
from xllm_speech.llm.chatglm_model import ChatGLMForConditionalGeneration
from xllm_speech.llm.chatglm_tokenizer import ChatGLMTokenizer
from xllm_speech.llm.loaded import LoadedLlm
from xllm_speech.llm.loading import load_llm

__all__ = ["ChatGLMConfig", "ChatGLMForConditionalGeneration", "ChatGLMTokenizer", "LoadedLlm", "load_llm"]

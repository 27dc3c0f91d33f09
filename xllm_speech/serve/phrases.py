"""What the page says, in Chinese and English."""

from __future__ import annotations

from xllm_speech.serve.refusal import Refusal

ENGLISH = {
    "title": "# Talk with an X-LLM about pictures, clips and speech",
    "chat": "Chat", "asr": "Speech recognition", "conversation": "Conversation",
    "ask": "Ask, and add pictures, clips or recordings; or speak", "settings": "Settings",
    "most_tokens": "Most tokens of an answer", "temperature": "Temperature (0: always the likeliest word)",
    "top_p": "Draw from the likeliest words that make up this share", "new": "New conversation", "examples": "Examples",
    "recording": "Recording", "picture": "Picture it is about (optional)", "recognise": "Recognise",
    "llm_text": "Transcript by the X-LLM", "cif_text": "Transcript by the CIF model", "times": "Times of the CIF model",
    "alignment": "Alignment", "privacy": "Everything you send is deleted after a while and never logged.",
}
CHINESE = {
    "title": "# 与 X-LLM 谈论图片、视频和语音",
    "chat": "对话", "asr": "语音识别", "conversation": "对话", "ask": "提问，可附图片、视频或录音，也可直接说话",
    "settings": "设置", "most_tokens": "回答的最大词元数", "temperature": "温度（0：总取最可能的词）",
    "top_p": "从累计概率达到此值的词中抽取", "new": "新对话", "examples": "示例", "recording": "录音",
    "picture": "相关图片（可选）", "recognise": "识别", "llm_text": "X-LLM 的转写", "cif_text": "CIF 模型的转写",
    "times": "CIF 模型的时间", "alignment": "对齐", "privacy": "您发送的内容会在一段时间后删除，且不写入日志。",
}
HEADERS = {"en": ["token", "start (s)", "end (s)", "confidence"], "zh": ["词元", "开始（秒）", "结束（秒）", "置信度"]}
_REASONS = {
    "invalid_media": "文件无法读取", "media_too_large": "文件过大或过长", "busy": "服务器忙，请稍后再试",
    "timeout": "超时，请稍后再试", "shutting_down": "服务器正在关闭", "unsupported": "此模型不支持",
    "too_long": "超出限制", "cannot_answer": "无法回答", "internal_error": "服务器出错",
}
_OTHERS = {
    "stopped": ("(stopped)", "（已停止）"), "nothing": ("Nothing was asked.", "还没有提问。"),
    "no_recording": ("Add a recording first.", "请先添加录音。"), "cut": ("(cut at the most tokens)", "（已达最大词元数）"),
    "silence": ("Nothing was heard.", "没有听到语音。"),
}


def is_chinese(accept_language: str) -> bool:
    """Whether a browser asks for Chinese first."""
    return accept_language.strip().lower().startswith("zh")


def explain(refusal: Refusal, chinese: bool) -> str:
    """Why something was not answered: the reason in the reader's language, the details as the API tells them."""
    if not chinese:
        return f"⚠ {refusal.message}"
    reason = _REASONS.get(refusal.code or "", "无法处理")
    return f"⚠ {reason}：{refusal.message}"


def say(key: str, chinese: bool) -> str:
    """A phrase."""
    return _OTHERS[key][chinese]

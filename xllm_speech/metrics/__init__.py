"""Layer 3: alignment, error rates, score files; captions and answers; conditions compared; verdicts of a judge.

Normal forms come in as functions (`NormalForm`), joined in the verb.
"""

from xllm_speech.metrics.alignment import Alignment, Counts, align
from xllm_speech.metrics.rates import bootstrap_interval, paired_bootstrap
from xllm_speech.metrics.score_file import NormalForm, score_files

__all__ = ["Alignment", "Counts", "NormalForm", "align", "bootstrap_interval", "paired_bootstrap", "score_files"]

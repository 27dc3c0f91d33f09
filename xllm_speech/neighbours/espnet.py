"""The CIF ASR as a model and a task of ESPnet2: its trainer, its options, its data; our network and losses.

`python -m xllm_speech.neighbours.espnet_train` is to it what `python -m espnet2.bin.asr_train` is to ESPnet's own task.
What comes out goes back with `neighbours.espnet_experiment`.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from xllm_speech.neighbours.espnet_import import no_downloads

try:
    with no_downloads():
        import humanfriendly
        from espnet2.asr.frontend.abs_frontend import AbsFrontend
        from espnet2.asr.specaug.abs_specaug import AbsSpecAug
        from espnet2.asr.specaug.specaug import SpecAug
        from espnet2.layers.abs_normalize import AbsNormalize
        from espnet2.layers.global_mvn import GlobalMVN
        from espnet2.tasks.abs_task import AbsTask
        from espnet2.torch_utils.device_funcs import force_gatherable
        from espnet2.torch_utils.initialize import initialize
        from espnet2.train.abs_espnet_model import AbsESPnetModel
        from espnet2.train.class_choices import ClassChoices
        from espnet2.train.collate_fn import CommonCollateFn
        from espnet2.train.preprocessor import CommonPreprocessor
        from espnet2.train.trainer import Trainer
        from espnet2.utils.nested_dict_action import NestedDictAction
        from espnet2.utils.types import float_or_none, int_or_none, str2bool, str_or_none
except ImportError as error:
    from xllm_speech.base.errors import MissingDependency

    raise MissingDependency(
        f"ESPnet2 cannot be imported ({error}); install it with: pip install 'xllm-speech[espnet]'"
    ) from error

from xllm_speech.base.config import config_from_dict, require
from xllm_speech.base.errors import ConfigError
from xllm_speech.base.units import FRAME_LENGTH_MS, MEL_BINS, SAMPLE_RATE_HZ
from xllm_speech.features.fbank import compute_fbank
from xllm_speech.models.asr import CifAsrModel, build_asr_model
from xllm_speech.models.asr_config import AsrModelConfig
from xllm_speech.records import AsrBatch, FbankBatch
from xllm_speech.text.tokens import TokenTable

logger = logging.getLogger(__name__)

WINDOW = SAMPLE_RATE_HZ * FRAME_LENGTH_MS // 1000


class FbankFrontend(AbsFrontend):
    """Our fbank on raw audio: 16 kHz samples in [-1, 1], as ESPnet's type `sound` reads them; several channels are averaged.

    Args:
        fs: sample rate of the audio, `16000` or `16k`; anything else is refused, for ESPnet does not resample.

    Raises:
        ConfigError: another rate.
    """

    def __init__(self, fs: int | str = SAMPLE_RATE_HZ) -> None:
        super().__init__()
        rate_hz = humanfriendly.parse_size(fs) if isinstance(fs, str) else fs
        require(
            rate_hz == SAMPLE_RATE_HZ,
            f"frontend_conf.fs {fs}: the features are those of {SAMPLE_RATE_HZ} Hz; format wav.scp with --fs 16k",
        )

    def output_size(self) -> int:
        """Mel bins."""
        return MEL_BINS

    @torch.no_grad()
    def forward(self, input: torch.Tensor, input_lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, N] or [B, N, channels] and samples per item -> [B, T, 80] float32, and frames per item."""
        samples_BN = (input.mean(-1) if input.dim() == 3 else input).float()
        rows = []
        with torch.autocast(samples_BN.device.type, enabled=False):
            for samples_N, count in zip(samples_BN, input_lengths.tolist(), strict=True):
                piece = samples_N[:count]
                # What is shorter than a window is mirrored by numpy.
                rows.append(compute_fbank(piece if count >= WINDOW else piece.cpu()).to(samples_BN.device))
        lens_B = torch.tensor([len(row) for row in rows], device=samples_BN.device)
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lens_B


class TablePreprocessor:
    """Cuts transcripts with a token table of ours, in its normal form; speech passes as it is."""

    def __init__(self, table: TokenTable) -> None:
        self.table = table

    def __call__(self, uid: str, data: dict[str, Any]) -> dict[str, np.ndarray]:
        """The same data, `text` as ids int64 [L]."""
        if isinstance(data.get("text"), str):
            data["text"] = np.array(self.table.encode(data["text"]), dtype=np.int64)
        return data


class CifAsrESPnetModel(AbsESPnetModel):
    """`CifAsrModel` as ESPnet's trainer wants a model.

    Args:
        asr: the network; its weights are named `asr.*` in ESPnet's checkpoints, CMVN statistics among them.
        frontend: audio to features; None where the data are features. specaug: ESPnet's; what it masks holds the mean.
    """

    extract_feats_in_collect_stats = True

    def __init__(self, asr: CifAsrModel, frontend: AbsFrontend | None = None, specaug: AbsSpecAug | None = None) -> None:
        super().__init__()
        self.asr, self.frontend, self.specaug = asr, frontend, specaug

    def forward(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor, text: torch.Tensor, text_lengths: torch.Tensor, **_: Any
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        """Loss per token, statistics, and the number of tokens as weight, so that ESPnet's averages are over tokens.

        speech: [B, N] samples or [B, T, 80] features. text: ids [B, L], padded with -1.
        """
        fbank = self.extract(speech, speech_lengths)
        if self.specaug is not None and self.training:
            mean_F = self.asr.cmvn.mean_F
            x_BTF, lens_B = self.specaug(fbank.x_BTF - mean_F, fbank.lens_B)
            fbank = FbankBatch(x_BTF + mean_F, lens_B)
        longest = int(text_lengths.max())
        inside_BL = torch.arange(longest, device=text.device) < text_lengths[:, None]
        tokens_BL = text[:, :longest].masked_fill(~inside_BL, 0).long()
        ids = [str(number) for number in range(len(text))]
        losses = self.asr(AsrBatch(ids, fbank, 0.0, tokens_BL, text_lengths.long()))
        tokens = max(1, losses.tokens)
        loss = losses.total / tokens
        stats = {
            "loss": loss.detach(), "acc": torch.tensor(losses.correct / tokens),
            **{f"loss_{name}": part / tokens for name, part in losses.parts.items()},
        }
        return force_gatherable((loss, stats, torch.tensor(tokens)), loss.device)

    def collect_feats(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor, **_: Any
    ) -> dict[str, torch.Tensor]:
        """Features before normalisation, for ESPnet's stage of statistics."""
        fbank = self.extract(speech, speech_lengths)
        return {"feats": fbank.x_BTF, "feats_lengths": fbank.lens_B}

    def extract(self, speech: torch.Tensor, speech_lengths: torch.Tensor) -> FbankBatch:
        """Features before CMVN of a batch as ESPnet's loader makes it."""
        if self.frontend is not None:
            x_BTF, lens_B = self.frontend(speech, speech_lengths)
        else:
            x_BTF, lens_B = speech, speech_lengths.long()
        return FbankBatch(x_BTF[:, : int(lens_B.max())], lens_B)


class CifAsrTask(AbsTask):
    """ESPnet's task `cif_asr`: `CifAsrTask.main(cmd=[...])`, or `ez.Trainer("cif_asr", ...)` (`neighbours.espnet_ez`).

    Options are ESPnet's. `model_conf` holds the section `model` of our configuration files, key by key.
    """

    num_optimizers = 1
    trainer = Trainer
    frontend_choices = ClassChoices("frontend", {"fbank": FbankFrontend}, AbsFrontend, default="fbank")
    specaug_choices = ClassChoices("specaug", {"specaug": SpecAug}, AbsSpecAug, default=None, optional=True)
    normalize_choices = ClassChoices("normalize", {"global_mvn": GlobalMVN}, AbsNormalize, default=None, optional=True)
    class_choices_list = [frontend_choices, specaug_choices, normalize_choices]  # noqa: RUF012

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Declare the options that are not those of every ESPnet task."""
        group = parser.add_argument_group(description="Task related")
        group.add_argument("--token_list", type=str_or_none, default=None, help="tokens, one per line, in id order")
        group.add_argument(
            "--token_table", type=str_or_none, default=None,
            help="folder of `xllm-speech tokens`; it cuts the text, instead of token_list and token_type",
        )
        group.add_argument("--input_size", type=int_or_none, default=None, help="80: the data are features, not audio")
        group.add_argument("--init", type=str_or_none, default=None, help="as in ESPnet's ASR task; default: PyTorch's")
        group.add_argument(
            "--model_conf", action=NestedDictAction, default={}, help="section `model` of our configuration files"
        )
        group = parser.add_argument_group(description="Preprocess related")
        group.add_argument("--use_preprocessor", type=str2bool, default=True, help="turn text into ids")
        group.add_argument("--token_type", default="char", choices=("char", "bpe"), help="how token_list was made")
        group.add_argument("--bpemodel", type=str_or_none, default=None, help="sentencepiece model, for bpe")
        group.add_argument("--non_linguistic_symbols", type=str_or_none, default=None, help="file of them, for char")
        group.add_argument("--cleaner", type=str_or_none, default=None, help="ESPnet's text cleaner")
        group.add_argument("--speech_volume_normalize", type=float_or_none, default=None, help="scale to this peak")
        for choices in cls.class_choices_list:
            choices.add_arguments(group)
        parser.set_defaults(num_att_plot=0)  # no attention of ours has the form that ESPnet draws

    @classmethod
    def build_collate_fn(cls, args: argparse.Namespace, train: bool) -> Callable[..., Any]:
        """ESPnet's: audio padded with 0, text with -1."""
        return CommonCollateFn(float_pad_value=0.0, int_pad_value=-1)

    @classmethod
    def build_preprocess_fn(cls, args: argparse.Namespace, train: bool) -> Callable[..., Any] | None:
        """Our table's where there is one, else ESPnet's."""
        if not args.use_preprocessor:
            return None
        if getattr(args, "token_table", None):
            return TablePreprocessor(TokenTable.load(args.token_table))
        return CommonPreprocessor(
            train=train, token_type=args.token_type, token_list=args.token_list, bpemodel=args.bpemodel,
            non_linguistic_symbols=args.non_linguistic_symbols, text_cleaner=args.cleaner,
            speech_volume_normalize=args.speech_volume_normalize,
        )

    @classmethod
    def required_data_names(cls, train: bool = True, inference: bool = False) -> tuple[str, ...]:
        """Names of the data."""
        return ("speech",) if inference else ("speech", "text")

    @classmethod
    def optional_data_names(cls, train: bool = True, inference: bool = False) -> tuple[str, ...]:
        """None."""
        return ()

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> CifAsrESPnetModel:
        """The model of ESPnet's arguments; `args.token_list` becomes the list itself, as ESPnet's tasks do it.

        Raises:
            ConfigError: unknown keys in model_conf, tokens in another order than ESPnet's, pictures or captions, features
                of another width.
        """
        args.token_list = tokens = list(_read_tokens(args))
        config = config_from_dict(args.model_conf or {}, AsrModelConfig, "model_conf")
        for name, kind in (("visual", config.visual.kind), ("linguistic", config.linguistic.kind)):
            require(kind == "none", f"model_conf: {name}.kind {kind}: ESPnet's data have speech alone; use `xllm-speech train`")
        table = TokenTable("char", tokens)  # for its check of the special tokens
        if args.input_size is None:
            frontend = cls.frontend_choices.get_class(args.frontend)(**args.frontend_conf)
            width = frontend.output_size()
        else:
            args.frontend, args.frontend_conf = None, {}
            frontend, width = None, args.input_size
        require(
            width == config.encoder.bins == MEL_BINS,
            f"features of {width} bins, model_conf encoder.bins {config.encoder.bins}: both must be {MEL_BINS}",
        )
        asr = build_asr_model(config, table.size, table.sos_id)
        if args.init is not None:
            initialize(asr, args.init)
        if args.normalize is not None:
            statistics = cls.normalize_choices.get_class(args.normalize)(**args.normalize_conf)
            asr.cmvn.set_statistics(statistics.mean.float(), statistics.std.float())
        elif not getattr(args, "collect_stats", False):
            logger.warning("features are not normalised; give --normalize global_mvn --normalize_conf stats_file=...")
        specaug = None if args.specaug is None else cls.specaug_choices.get_class(args.specaug)(**args.specaug_conf)
        return CifAsrESPnetModel(asr, frontend, specaug)


def _read_tokens(args: argparse.Namespace) -> tuple[str, ...] | list[str]:
    if getattr(args, "token_table", None):
        return TokenTable.load(args.token_table).tokens
    if isinstance(args.token_list, str):
        try:
            with open(args.token_list, encoding="utf-8") as stream:
                return [line.rstrip("\n") for line in stream]
        except OSError as error:
            raise ConfigError(f"token_list {args.token_list}: cannot be read ({error.strerror})") from error
    require(isinstance(args.token_list, list | tuple), "token_list or token_table is needed")
    return args.token_list

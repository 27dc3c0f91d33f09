"""The CIF ASR model (paper 3.2.1 and A.3): CMVN, conformer, CIF, decoder, CTC head; training losses and decoding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import nn

from xllm_speech.base.config import require, require_choice
from xllm_speech.base.errors import ConfigError, SeamError
from xllm_speech.cif import AlphaPredictor, CifOut, integrate_and_fire
from xllm_speech.decoders.cif_decoder import CifDecoder
from xllm_speech.decoders.ctc import NEVER, ctc_loss
from xllm_speech.decoders.fusion import Fusion
from xllm_speech.decoders.graph import SearchGraph, search_graph
from xllm_speech.decoders.k2_paths import ctc_loss_k2, search_graph_k2, search_tokens_k2
from xllm_speech.decoders.prefix_beam import read_path, search_prefix
from xllm_speech.decoders.search import CtcInput, SearchResult, search_beam, search_fast, search_greedy
from xllm_speech.encoders.caption import CaptionEncoder, load_caption_encoder
from xllm_speech.encoders.conformer import ConformerEncoder
from xllm_speech.encoders.vision import VisionEncoder, load_vision_encoder
from xllm_speech.models.asr_config import AsrModelConfig
from xllm_speech.nn.cmvn import GlobalCmvn
from xllm_speech.nn.frozen import Frozen
from xllm_speech.nn.masks import valid_mask
from xllm_speech.records import AsrBatch, AsrLosses, EncoderOut, FbankBatch, Memory

BLANK_ID, UNKNOWN_ID = 0, 1
FUSED_POOL = 10  # tokens of the decoder among which a greedy search with fusion chooses


GRAPH_METHODS = ("graph", "graph-k2")
CTC_METHODS = ("ctc", *GRAPH_METHODS)  # their tokens lie at encoder steps, not at units
METHODS = ("greedy", "beam", "fast", *CTC_METHODS)


@dataclass
class SearchConfig:
    """How to decode.

    method: greedy | beam | fast | ctc (prefix beam search on the CTC head alone) | graph (the CTC head over a lexicon and a
    word model) | graph-k2 (the same by k2; without a graph over CTC's topology alone). beam: hypotheses kept. ctc_weight:
    share of CTC in scores of `beam`. passes: of the fast search. length_bonus: per token of `ctc`; CIF needs none, as its texts
    have one token per unit. fusion: a language model and hotwords (`models.fusion.build_fusion`), for greedy, beam and ctc.
    graph: from `models.graph.load_graph`.
    """

    method: str = "greedy"
    beam: int = 5
    ctc_weight: float = 0.3
    passes: int = 1
    length_bonus: float = 0.0
    fusion: Fusion | None = None
    graph: SearchGraph | None = None

    def __post_init__(self) -> None:
        require_choice("search.method", self.method, METHODS)
        require(self.beam >= 1, f"search.beam {self.beam} must be at least 1")
        require(0 <= self.ctc_weight < 1, f"search.ctc_weight {self.ctc_weight} must lie in [0, 1)")
        require(self.passes >= 0, f"search.passes {self.passes} must not be negative")
        require(
            self.fusion is None or self.method not in ("fast", *GRAPH_METHODS),
            f"search.method {self.method} takes no n-gram model of tokens and no hotwords; use greedy, beam or ctc",
        )
        require(
            self.method in GRAPH_METHODS if self.graph is not None else self.method != "graph",
            f"search.method {self.method}: a graph of words goes with search.method graph, and with no other",
        )


class CifAsrModel(nn.Module):
    """The network. `forward` gives training losses, `recognise` tokens.

    Args:
        unit_head: classifier of single units for the fast search, or None. visual, linguistic: frozen encoders of pictures
            and captions, or None. The other arguments are parts and weights named as in the configuration.
    """

    def __init__(
        self,
        encoder: ConformerEncoder,
        alpha: AlphaPredictor,
        decoder: CifDecoder,
        vocab: int,
        bins: int,
        tail_threshold: float = 0.5,
        visual: VisionEncoder | None = None,
        linguistic: CaptionEncoder | None = None,
        label_smoothing: float = 0.1,
        ctc_weight: float = 0.5,
        quantity_weight: float = 1.0,
        unit_weight: float = 0.0,
        eos_unit: bool = False,
        ctc_by: str = "torch",
    ) -> None:
        super().__init__()
        self.ctc_by = ctc_by
        self.cmvn = GlobalCmvn(bins)
        self.encoder, self.alpha, self.decoder = encoder, alpha, decoder
        self.ctc_head = nn.Linear(decoder.width, vocab)
        self.unit_head = nn.Linear(decoder.width, vocab) if unit_weight > 0 else None
        self.visual = None if visual is None else Frozen(visual)
        self.linguistic = None if linguistic is None else Frozen(linguistic)
        self.tail_threshold, self.eos_unit = tail_threshold, eos_unit
        self.label_smoothing, self.ctc_weight = label_smoothing, ctc_weight
        self.quantity_weight, self.unit_weight = quantity_weight, unit_weight

    def encode(self, fbank: FbankBatch) -> EncoderOut:
        """Encoder output of raw (not yet normalised) features."""
        return self.encoder(FbankBatch(self.cmvn(fbank.x_BTF), fbank.lens_B))

    def find_units(self, fbank: FbankBatch) -> tuple[EncoderOut, CifOut]:
        """Inference: encoder output and units."""
        encoded = self.encode(fbank)
        cif = integrate_and_fire(encoded.x_BSD, self.alpha(encoded), encoded.lens_B, tail_threshold=self.tail_threshold)
        return encoded, cif

    def see(self, batch: AsrBatch) -> tuple[Memory | None, Memory | None]:
        """Visual and linguistic features of a batch: those it carries, or those of the frozen encoders; None: all absent."""
        visual, linguistic = batch.visual, batch.linguistic
        if visual is None and self.visual is not None and batch.pixels is not None:
            visual = self.visual(batch.pixels)
        if linguistic is None and self.linguistic is not None and any(batch.captions):
            linguistic = self.linguistic(batch.captions)
        return visual, linguistic

    def forward(self, batch: AsrBatch) -> AsrLosses:
        """Training losses, each a sum over the batch (cif.md, Losses)."""
        if batch.tokens_BL is None or batch.token_lens_B is None:
            raise SeamError("training needs a batch with transcripts")
        if not batch.ids:  # every item of the batch was broken; data-parallel ranks still need a loss with gradients
            zero = sum(parameter.sum() * 0.0 for parameter in self.parameters() if parameter.requires_grad)
            assert isinstance(zero, torch.Tensor)
            names = ["ce", "ctc", "quantity", *([] if self.unit_head is None else ["unit"])]
            return AsrLosses(zero, {name: zero.detach() for name in names}, 0, 0)
        tokens_BL, lens_B = batch.tokens_BL, batch.token_lens_B
        if self.eos_unit:
            tokens_BL = functional.pad(tokens_BL, (0, 1)).scatter(1, lens_B[:, None], self.decoder.sos_id)
            lens_B = lens_B + 1
        encoded = self.encode(batch.fbank)
        alpha_BS = self.alpha(encoded)
        cif = integrate_and_fire(encoded.x_BSD, alpha_BS, encoded.lens_B, lens_B)
        logits_BUV = self.decoder(tokens_BL, cif.units_BUD, *self.see(batch))
        inside_BU = valid_mask(lens_B, tokens_BL.shape[1])
        targets_BU = tokens_BL.masked_fill(~inside_BU, -100)
        losses = {
            "ce": _cross_entropy(logits_BUV, targets_BU, self.label_smoothing),
            "ctc": (ctc_loss if self.ctc_by == "torch" else ctc_loss_k2)(
                self.ctc_head(encoded.x_BSD), encoded.lens_B, tokens_BL, lens_B
            ),
            "quantity": (cif.quantity_B - lens_B).abs().sum(),
        }
        total = losses["ce"] + self.ctc_weight * losses["ctc"] + self.quantity_weight * losses["quantity"]
        if self.unit_head is not None:
            losses["unit"] = _cross_entropy(self.unit_head(cif.units_BUD), targets_BU, self.label_smoothing)
            total = total + self.unit_weight * losses["unit"]
        with torch.no_grad():
            correct = (logits_BUV.argmax(-1) == targets_BU).sum()
        return AsrLosses(total, {name: loss.detach() for name, loss in losses.items()}, int(lens_B.sum()), int(correct))

    @torch.no_grad()
    def recognise(self, batch: AsrBatch, search: SearchConfig) -> tuple[list[SearchResult], CifOut]:
        """Tokens of every utterance, and the units that they came from (one unit per token, `<sos/eos>` cut off).

        Raises:
            ConfigError: the fast search of a model that was trained without its head.
        """
        encoded, cif = self.find_units(batch.fbank)
        return self.decode(encoded, cif, *self.see(batch), search)

    @torch.no_grad()
    def decode(
        self, encoded: EncoderOut, cif: CifOut, visual: Memory | None, linguistic: Memory | None, search: SearchConfig
    ) -> tuple[list[SearchResult], CifOut]:
        """The second half of `recognise`: from encoder output and units to tokens."""
        banned = (BLANK_ID,) if self.eos_unit else (BLANK_ID, self.decoder.sos_id)
        match search.method:
            case "greedy" if search.fusion is None:
                results = search_greedy(self.decoder, cif, visual, linguistic, banned)
            case "greedy":
                results = search_beam(self.decoder, cif, 1, None, visual, linguistic, banned, FUSED_POOL, search.fusion)
            case "beam":
                ctc = None
                if search.ctc_weight > 0:
                    ctc = CtcInput(self._ctc(encoded), encoded.lens_B, search.ctc_weight)
                results = search_beam(self.decoder, cif, search.beam, ctc, visual, linguistic, banned, fusion=search.fusion)
            case "ctc" | "graph" | "graph-k2":
                return self._search_ctc(encoded, cif, search)
            case "fast":
                if self.unit_head is None:
                    raise ConfigError(
                        "search.method fast: this model was trained with loss.unit_weight 0 and has no head for it; "
                        "use greedy or beam, or train with model.loss.unit_weight=0.3"
                    )
                unit_logits_BUV = self.unit_head(cif.units_BUD)
                results = search_fast(self.decoder, cif, unit_logits_BUV, visual, linguistic, search.passes, banned)
            case other:
                raise ConfigError(f"search.method: `{other}` is not one of {', '.join(METHODS)}")
        return [_cut_at_eos(result, self.decoder.sos_id) for result in results], cif

    def _ctc(self, encoded: EncoderOut) -> torch.Tensor:
        return functional.log_softmax(self.ctc_head(encoded.x_BSD).float(), -1)

    def _search_ctc(
        self, encoded: EncoderOut, cif: CifOut, search: SearchConfig
    ) -> tuple[list[SearchResult], CifOut]:
        """CTC's text, and as its units the encoder steps in which it was written: one step each, from its start to its end."""
        log_probs_BSV, lengths = self._ctc(encoded), encoded.lens_B.tolist()
        rows = [log_probs_SV[:length] for log_probs_SV, length in zip(log_probs_BSV, lengths, strict=True)]
        if search.method == "ctc":
            banned = (self.decoder.sos_id,)
            found = [search_prefix(row, search.beam, BLANK_ID, banned, search.fusion, search.length_bonus) for row in rows]
        else:
            if search.graph is None:
                log_probs_BSV[..., self.decoder.sos_id] = NEVER
                best = search_tokens_k2(log_probs_BSV, encoded.lens_B)
            elif search.method == "graph-k2":
                best = search_graph_k2(search.graph, log_probs_BSV, encoded.lens_B)
            else:
                best = [search_graph(search.graph, row) for row in rows]
            found = [read_path(row, path.tokens, path.score, BLANK_ID) for row, path in zip(rows, best, strict=True)]
        counts = [len(result.tokens) for result in found]
        lens_B = torch.tensor(counts, device=encoded.x_BSD.device)
        step_BU = torch.zeros(len(found), max(counts, default=0), dtype=torch.long, device=lens_B.device)
        for row, result in enumerate(found):
            step_BU[row, : counts[row]] = torch.tensor(result.steps, dtype=torch.long)
        inside_BU = valid_mask(lens_B, step_BU.shape[1])
        units_BUD = encoded.x_BSD.gather(1, step_BU[:, :, None].expand(-1, -1, encoded.x_BSD.shape[2]))
        start_BU = step_BU.to(cif.fire_BU.dtype)
        units = CifOut(
            units_BUD.masked_fill(~inside_BU[:, :, None], 0.0), lens_B, cif.quantity_B, start_BU.masked_fill(~inside_BU, 0.0),
            (start_BU + 1).masked_fill(~inside_BU, 0.0), cif.alpha_BS,
        )
        return [SearchResult(result.tokens, result.log_probs, result.score) for result in found], units


def _cross_entropy(logits_BUV: torch.Tensor, targets_BU: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    return functional.cross_entropy(
        logits_BUV.float().flatten(0, 1), targets_BU.flatten(), ignore_index=-100, reduction="sum",
        label_smoothing=label_smoothing,
    )


def _cut_at_eos(result: SearchResult, eos_id: int) -> SearchResult:
    if eos_id not in result.tokens:
        return result
    end = result.tokens.index(eos_id)
    return SearchResult(result.tokens[:end], result.log_probs[:end], result.score)


def build_asr_model(
    config: AsrModelConfig,
    vocab: int,
    sos_id: int,
    visual: VisionEncoder | None = None,
    linguistic: CaptionEncoder | None = None,
) -> CifAsrModel:
    """Build the model of `config`. Frozen encoders are loaded from the configured folders unless handed in."""
    encoder, decoder = config.encoder, config.decoder
    if visual is None and config.visual.kind != "none":
        visual = load_vision_encoder(config.visual.kind, str(config.visual.path))
    if linguistic is None and config.linguistic.kind != "none":
        linguistic = load_caption_encoder(str(config.linguistic.path))
    for name, module, width in (
        ("visual", visual, config.visual.width), ("linguistic", linguistic, config.linguistic.width),
    ):
        found = width if module is None else module.width
        require(found == width, f"{name}.width is {width}, its encoder gives {found}")
    return CifAsrModel(
        encoder=ConformerEncoder(
            bins=encoder.bins, channels=encoder.channels, width=encoder.width, heads=encoder.heads,
            feedforward=encoder.feedforward, kernel=encoder.kernel, blocks=encoder.blocks, pool_after=encoder.pool_after,
            dropout=encoder.dropout, attention_dropout=encoder.attention_dropout, position=encoder.position,
            conv_norm=encoder.conv_norm, final_norm=encoder.final_norm, chunk_steps=encoder.chunk_steps,
            left_chunks=encoder.left_chunks,
        ),
        alpha=AlphaPredictor(encoder.width, config.cif.channels, config.cif.kernel, config.cif.dropout),
        decoder=CifDecoder(
            vocab=vocab, sos_id=sos_id, width=encoder.width, heads=decoder.heads, feedforward=decoder.feedforward,
            blocks=decoder.blocks, dropout=decoder.dropout, visual_blocks=decoder.visual_blocks,
            linguistic_blocks=decoder.linguistic_blocks, visual_width=config.visual.width,
            linguistic_width=config.linguistic.width,
        ),
        vocab=vocab,
        bins=encoder.bins,
        tail_threshold=config.cif.tail_threshold,
        visual=visual,
        linguistic=linguistic,
        label_smoothing=config.loss.label_smoothing,
        ctc_weight=config.loss.ctc_weight,
        quantity_weight=config.loss.quantity_weight,
        unit_weight=config.loss.unit_weight,
        eos_unit=config.eos_unit,
        ctc_by=config.loss.ctc_by,
    )

"""A tiny world for tests of phases 2 and 3: frozen parts by chance in real formats, pictures, speech, clips and manifests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

QUESTIONS = ("是什么颜色", "在哪里", "有几个")
COLOURS = {"红": (220, 30, 30), "绿": (30, 200, 40), "蓝": (40, 60, 230), "黄": (230, 220, 40)}
SIZE = 16  # pixels


@dataclass(frozen=True)
class World:
    """Where the parts are. talks: conversations of tasks caption, vl, vsd, video, text; cuts: speech with pictures."""

    folder: Path
    llm: Path
    vision: Path
    asr: Path
    cuts: Path
    talks: Path


def make_llm(folder: Path, seed: int = 0) -> Path:
    """An untrained ChatGLM of two layers in an official folder."""
    from xllm_speech.models.lm_config import LmModelConfig, build_lm, known_texts, load_vocabulary, make_vocabulary, save_lm

    folder.mkdir(parents=True)
    tokenizer = load_vocabulary(make_vocabulary(known_texts([*QUESTIONS, *COLOURS, "色的圆形向左右上下移动有没"])))
    torch.manual_seed(seed)
    config = LmModelConfig(hidden_size=32, num_layers=2, num_attention_heads=4, inner_hidden_size=64, deepnorm_depth=2)
    glm = build_lm(config, tokenizer)
    save_lm(folder, glm.state_dict(), glm.config, tokenizer)
    return folder


def make_vision(folder: Path, seed: int = 0) -> Path:
    """An untrained ViT of one block: pictures of 16 pixels, 5 tokens of width 12."""
    from xllm_speech.encoders.vision import build_vit, save_vit

    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    sizes = {"image_size": SIZE, "patch_size": 8, "width": 12, "depth": 1, "heads": 2}
    save_vit(build_vit(**sizes), folder, **sizes)  # type: ignore[arg-type]
    return folder


def make_asr(folder: Path, seed: int = 0) -> Path:
    """An untrained CIF ASR model whose units are of width 16."""
    from xllm_speech.models.asr import build_asr_model
    from xllm_speech.models.asr_config import AsrModelConfig, CifConfig, DecoderConfig, EncoderConfig
    from xllm_speech.models.checkpoints import FeatureConfig, save_asr
    from xllm_speech.text.tokens import TokenTable

    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    config = AsrModelConfig(
        encoder=EncoderConfig(channels=4, width=16, heads=2, feedforward=24, kernel=5, blocks=2, pool_after=[1, 2]),
        cif=CifConfig(channels=8),
        decoder=DecoderConfig(heads=2, feedforward=24, blocks=2, visual_blocks=[1], linguistic_blocks=[2]),
    )
    table = TokenTable.train(["".join([*QUESTIONS, *COLOURS])], "char")
    model = build_asr_model(config, table.size, table.sos_id)
    model.cmvn.set_statistics(torch.full((80,), 12.0), torch.full((80,), 4.0))
    save_asr(folder, model.state_dict(), config, table, FeatureConfig())
    return folder


def make_clip(path: Path, frames: int, colour: tuple[int, int, int]) -> Path:
    """A clip whose frames grow brighter."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            picture = np.full((SIZE, SIZE, 3), colour, dtype=np.uint8) // (frames - number)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def make_world(folder: Path, items: int = 12) -> World:
    """All of it below `folder`; `items` pictures, utterances and clips."""
    import soundfile
    from lhotse import CutSet, Recording, SupervisionSegment
    from PIL import Image

    from xllm_speech.manifests.conversations import write_conversations
    from xllm_speech.records import Conversation, ConversationItem, Message

    for name in ("images", "speech", "clips"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    talks: list[Conversation] = []
    cuts = []
    for number in range(items):
        name, colour = list(COLOURS)[number % len(COLOURS)], list(COLOURS.values())[number % len(COLOURS)]
        question = QUESTIONS[number % len(QUESTIONS)]
        picture, clip = folder / f"images/{number}.png", folder / f"clips/{number}.mp4"
        wave = folder / f"speech/u{number}.wav"
        Image.new("RGB", (SIZE, SIZE), colour).save(picture)
        samples = rng.standard_normal(8000 + 1600 * (number % 4)).astype(np.float32) * 0.1
        soundfile.write(wave, samples, 16000)
        make_clip(clip, 2 + number % 4, colour)
        recording = Recording.from_file(wave, recording_id=f"u{number}")
        cut = recording.to_cut()
        cut.id = f"u{number}"
        text = f"{name}色{question}"
        cut.supervisions = [SupervisionSegment(cut.id, recording_id=recording.id, start=0, duration=cut.duration, text=text)]
        cut.custom = {"image": str(picture), "caption": f"{name}色的圆形"}
        cuts.append(cut)

        def talk(task: str, items: list[ConversationItem], answer: str, number: int = number) -> None:
            reply = Message("assistant", (ConversationItem("text", text=answer),))
            talks.append(Conversation(f"{number}-{task}", task, (Message("user", tuple(items)), reply)))

        image, video = ConversationItem("image", path=str(picture)), ConversationItem("video", path=str(clip))
        speech = ConversationItem("speech", path=str(wave), cut=f"u{number}")
        talk("caption", [image], f"{name}色的圆形")
        talk("vl", [image, ConversationItem("text", text=question)], f"{name}色")
        talk("vsd", [image, speech], f"{name}色")
        talk("video", [video], f"{name}色的圆形移动")
        talk("text", [ConversationItem("text", text=question)], "没有")
    CutSet.from_cuts(cuts).to_file(folder / "cuts.jsonl.gz")
    write_conversations(folder / "talks.jsonl.gz", talks)
    return World(
        folder, make_llm(folder / "llm"), make_vision(folder / "vision"), make_asr(folder / "asr"), folder / "cuts.jsonl.gz",
        folder / "talks.jsonl.gz",
    )


def xllm_settings(world: World) -> dict[str, object]:
    """The `model` section of a configuration on this world."""
    qformer = {"encoder_width": 12, "queries": 2, "width": 16, "layers": 2, "heads": 2, "feedforward": 24, "init_std": 0.2}
    speech = {"unit_width": 16, "width": 16, "layers": 1, "heads": 2, "feedforward": 24, "positions": 32, "init_std": 0.2}
    return {
        "llm": {"path": str(world.llm)},
        "encoders": {"vision": {"kind": "vit", "path": str(world.vision)}, "asr": str(world.asr)},
        "interfaces": {"image": {"qformer": qformer}, "speech": speech},
        "video_frames": 3,
    }

"""A tiny random model directory, made once."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """An untrained model whose units come about three a second, with a table of a few characters."""
    from xllm_speech.models.asr import build_asr_model
    from xllm_speech.models.asr_config import AsrModelConfig, CifConfig, DecoderConfig, EncoderConfig, LossConfig
    from xllm_speech.models.checkpoints import FeatureConfig, save_asr
    from xllm_speech.text.tokens import TokenTable

    torch.manual_seed(0)
    config = AsrModelConfig(
        encoder=EncoderConfig(channels=4, width=32, heads=2, feedforward=48, kernel=5, blocks=3, pool_after=[1, 2]),
        cif=CifConfig(channels=16), loss=LossConfig(unit_weight=0.3),
        decoder=DecoderConfig(heads=2, feedforward=48, blocks=2, visual_blocks=[1], linguistic_blocks=[2]),
    )
    table = TokenTable.train(["天地玄黄宇宙洪荒日月盈昃"], "char")
    model = build_asr_model(config, table.size, table.sos_id)
    torch.nn.init.normal_(model.decoder.vocabulary.weight, std=2.0)
    model.cmvn.set_statistics(torch.full((80,), 12.0), torch.full((80,), 4.0))
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    save_asr(folder, model.state_dict(), config, table, FeatureConfig())
    return folder


@pytest.fixture(scope="session")
def chunked_dir(tmp_path_factory):
    """An untrained model with chunks of 4 steps, whose units come about three a second."""
    from xllm_speech.models.asr import build_asr_model
    from xllm_speech.models.asr_config import AsrModelConfig, CifConfig, DecoderConfig, EncoderConfig
    from xllm_speech.models.checkpoints import FeatureConfig, save_asr
    from xllm_speech.text.tokens import TokenTable

    torch.manual_seed(0)
    config = AsrModelConfig(
        encoder=EncoderConfig(
            channels=4, width=32, heads=2, feedforward=48, kernel=7, blocks=3, pool_after=[1, 2], chunk_steps=4, left_chunks=3
        ),
        cif=CifConfig(channels=16),
        decoder=DecoderConfig(heads=2, feedforward=48, blocks=2, visual_blocks=[1], linguistic_blocks=[2]),
    )
    table = TokenTable.train(["天地玄黄宇宙洪荒日月盈昃"], "char")
    model = build_asr_model(config, table.size, table.sos_id)
    torch.nn.init.normal_(model.decoder.vocabulary.weight, std=2.0)
    torch.nn.init.normal_(model.alpha.linear.weight, std=1.0)
    model.cmvn.set_statistics(torch.full((80,), 12.0), torch.full((80,), 4.0))
    folder = tmp_path_factory.mktemp("models") / "chunked"
    folder.mkdir()
    save_asr(folder, model.state_dict(), config, table, FeatureConfig())
    return folder


# All that tests ask, in one vocabulary: characters that the LLM does not know would be no text.
TEXT = (
    "左上有红色的圆形，右下有绿色的旗子。问：答：什么颜色请将这段语音转化为文字<>/SpeechImageVido[Round 0123456789]\n"
    "请忠实地识别该语音请将语音转换成书面文字。请识别该音频的文本内容请根据图片忠实地识别这段语音根据图片请忠实地识别该语音"
    "请详细描述这张图片。请查看这张图片并描述您注意到的内容。请提供这张图片的详细描述你能为我描述这张图片的内容吗？"
    "请描述这个视频。请根据图像回答语音中的问题请利用图像回答语音中的问题"
)
KINDS = ["image", "video", "speech"]


@pytest.fixture(scope="session")
def xllm_parts(tmp_path_factory, model_dir):
    """Folders of a tiny ChatGLM whose answers depend on what it is asked, a tiny ViT and a tiny CIF ASR."""
    from xllm_speech.base.quiet import quiet_transformers
    from xllm_speech.encoders.vision import build_vit, save_vit
    from xllm_speech.llm import ChatGLMConfig, ChatGLMForConditionalGeneration
    from xllm_speech.llm.chatglm_tokenizer import train_chatglm_tokenizer

    folder = tmp_path_factory.mktemp("parts")
    (folder / "llm").mkdir()
    tokenizer = train_chatglm_tokenizer([TEXT], folder / "llm")
    torch.manual_seed(0)
    config = ChatGLMConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_layers=2, num_attention_heads=4, inner_hidden_size=64,
        max_sequence_length=256, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        mask_token_id=tokenizer.mask_token_id, gmask_token_id=tokenizer.convert_tokens_to_ids("[gMASK]"),
        pad_token_id=tokenizer.pad_token_id, deepnorm_depth=2, tie_word_embeddings=False,
    )
    llm = ChatGLMForConditionalGeneration(config)
    with torch.no_grad():
        for weight in llm.parameters():
            if weight.dim() == 2:
                weight.normal_(0, 0.3)
        mute = [index for piece, index in tokenizer.get_vocab().items() if piece[0] in "<[" and piece != "<eop>" and piece[1:]]
        llm.lm_head.weight[mute] *= 0.1  # else a chance answer is mostly pieces without text
    with quiet_transformers():
        llm.save_pretrained(folder / "llm")
    tokenizer.save_pretrained(str(folder / "llm"))
    sizes = {"image_size": 32, "patch_size": 16, "width": 16, "depth": 1, "heads": 2}
    (folder / "vision").mkdir()
    save_vit(build_vit(**sizes), folder / "vision", **sizes)
    return {"llm": folder / "llm", "vision": folder / "vision", "asr": model_dir}


def xllm_config(parts, kinds=KINDS):
    """The configuration of a tiny X-LLM on `xllm_parts`."""
    from xllm_speech.interfaces.config import ImageInterfaceConfig, InterfacesConfig, QFormerConfig, SpeechInterfaceConfig
    from xllm_speech.models.xllm_config import EncodersConfig, LlmConfig, VisionConfig, XllmConfig

    qformer = QFormerConfig(
        encoder_width=16, queries=3, width=16, layers=2, heads=2, feedforward=24, positions=0, dropout=0.1, init_std=0.4
    )
    interfaces = InterfacesConfig(
        kinds=list(kinds), image=ImageInterfaceConfig(qformer=qformer),
        speech=SpeechInterfaceConfig(unit_width=32, width=16, layers=1, heads=2, feedforward=24, positions=32, init_std=0.4),
    )
    return XllmConfig(
        llm=LlmConfig(str(parts["llm"])), interfaces=interfaces, video_frames=3,
        encoders=EncodersConfig(vision=VisionConfig("vit", str(parts["vision"])), asr=str(parts["asr"])),
    )


def save_tiny(folder, parts, kinds=KINDS, phase=3, trained=None, parents=None, seed=1):
    """Write a model directory with chance values; whole interfaces unless `trained` names parts."""
    from xllm_speech.llm.loading import load_llm
    from xllm_speech.models.xllm_checkpoints import XllmDescription, build_xllm, hash_parts, save_xllm

    torch.manual_seed(seed)
    config = xllm_config(parts, kinds)
    model = build_xllm(config, load_llm(parts["llm"]))
    with torch.no_grad():
        for name, weight in model.interfaces.named_parameters():
            if weight.dim() == 2 and "adapter" in name:
                weight.normal_(0, 0.3)
    folder.mkdir(parents=True)
    whole = [f"{kind}.{name}" for kind in kinds for name, _ in model.interfaces[kind].named_children()]
    save_xllm(folder, model.state_dict(), XllmDescription(
        phase=phase, kinds=list(kinds), parts=trained or whole, complete=trained is None, model=config,
        frozen_sha256=hash_parts(config), parents=parents or {},
    ))
    return folder


@pytest.fixture(scope="session")
def save_xllm_on():
    """`save_tiny`."""
    return save_tiny


@pytest.fixture(scope="session")
def make_xllm(xllm_parts):
    """`save_tiny` on `xllm_parts`."""
    return lambda folder, *args, **more: save_tiny(folder, xllm_parts, *args, **more)


@pytest.fixture(scope="session")
def xllm_dir(tmp_path_factory, make_xllm):
    """A tiny X-LLM for images, clips and speech."""
    return make_xllm(tmp_path_factory.mktemp("xllm") / "tiny")


@pytest.fixture(scope="session")
def media(tmp_path_factory):
    """Two pictures, a clip of five frames, three recordings, and a broken file."""
    import av
    import numpy as np
    import soundfile
    from PIL import Image

    folder = tmp_path_factory.mktemp("media")
    generator = np.random.default_rng(0)
    for name in ("red", "green"):
        Image.fromarray(generator.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 50 * number, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for name, seconds in (("short", 0.5), ("middle", 1.0), ("long", 2.0)):
        soundfile.write(folder / f"{name}.wav", 0.1 * generator.standard_normal(int(16000 * seconds)), 16000)
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "broken.wav").write_bytes(b"no sound")
    return folder


@pytest.fixture(scope="session")
def mixed_cuts(media, tmp_path_factory):
    """Sixteen recordings of many lengths and levels, some with a picture."""
    import numpy as np
    import soundfile

    from xllm_speech.features.audio import load_file

    folder, rng, found = tmp_path_factory.mktemp("many"), np.random.default_rng(3), []
    for number in range(16):
        path = folder / f"u{number:02d}.wav"
        soundfile.write(path, rng.uniform(0.05, 0.3) * rng.standard_normal(int(16000 * rng.uniform(0.3, 3.0))), 16000)
        cut = load_file(path)
        if number % 3:
            cut.custom = {"image": str(media / ("red.png" if number % 2 else "green.png"))}
        found.append(cut)
    return found

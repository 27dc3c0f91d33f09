"""The CIF ASR under ESPnet's trainer and ESPnet-EZ, and its way back into our model directories."""

from __future__ import annotations

import argparse
import contextlib
import logging
import re
import sys
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
import torch
import yaml

pytest.importorskip("espnet2", reason="ESPnet is not installed")

from xllm_speech.base.errors import CheckpointError, ConfigError, DataError
from xllm_speech.base.rejects import Rejects
from xllm_speech.features.fbank import compute_fbank
from xllm_speech.infer.asr import CifAsr
from xllm_speech.manifests.kaldi import read_kaldi_dir
from xllm_speech.models.asr import SearchConfig, build_asr_model
from xllm_speech.models.asr_config import AsrModelConfig
from xllm_speech.models.checkpoints import FeatureConfig, save_asr
from xllm_speech.neighbours import espnet_ez, espnet_train
from xllm_speech.neighbours.espnet import CifAsrTask, FbankFrontend
from xllm_speech.neighbours.espnet_experiment import export_experiment, load_experiment, start_experiment
from xllm_speech.records import AsrBatch, FbankBatch
from xllm_speech.text.tokens import TokenTable

MODEL = {
    "encoder": {"channels": 4, "width": 32, "heads": 2, "feedforward": 64, "kernel": 7, "blocks": 3, "pool_after": [1, 2],
                "dropout": 0.0},
    "cif": {"channels": 32},
    "decoder": {"heads": 2, "feedforward": 64, "blocks": 2, "visual_blocks": [1], "linguistic_blocks": [2], "dropout": 0.0},
}
TOKENS = ["<blank>", "<unk>", "天", "地", "<sos/eos>"]
EPOCHS, STEPS = 6, 25


@pytest.fixture(scope="module", autouse=True)
def _quiet_process():
    """ESPnet reads the command line for its default options, and seeds and threads belong to other tests too."""
    threads, words = torch.get_num_threads(), sys.argv
    torch.set_num_threads(1)
    sys.argv = ["test"]
    yield
    sys.argv = words
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def kaldi(shared_data, tmp_path_factory) -> Path:
    """train/ and valid/, 16 kHz, two words of four speakers."""
    source, folder = shared_data / "dspspeech20_10spk", tmp_path_factory.mktemp("kaldi")
    if not source.is_dir():
        pytest.skip(f"no {source}")
    rows = [line.split() for line in (source / "wav.scp").read_text().splitlines()]
    rows = [row for row in rows if re.fullmatch(r"s0[1-4]-(00|04)-\d+", row[0])]
    texts = dict(line.split(maxsplit=1) for line in (source / "text").read_text().splitlines())
    for name, chosen in (("train", rows), ("valid", rows[::6])):
        (folder / name).mkdir()
        (folder / name / "wav.scp").write_text("".join(f"{key} {source.parent / path}\n" for key, path in chosen))
        (folder / name / "text").write_text("".join(f"{key} {texts[key]}\n" for key, _ in chosen))
        (folder / name / "utt2spk").write_text("".join(f"{key} {key[:3]}\n" for key, _ in chosen))
    return folder


@pytest.fixture(scope="module")
def table(kaldi, tmp_path_factory) -> Path:
    lines = (kaldi / "train/text").read_text().splitlines()
    folder = tmp_path_factory.mktemp("table")
    TokenTable.train([line.split(maxsplit=1)[1] for line in lines], "char").save(folder)
    return folder


@contextlib.contextmanager
def epoch_losses():
    """Training losses by epoch, from ESPnet's log."""
    losses: list[float] = []

    class Reader(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if found := re.search(r"\d+epoch results: \[train\].*?\bloss=([\d.]+)", record.getMessage()):
                losses.append(float(found[1]))

    root, reader = logging.getLogger(), Reader()
    level = root.level
    root.addHandler(reader)
    root.setLevel(logging.INFO)
    try:
        yield losses
    finally:
        root.removeHandler(reader)
        root.setLevel(level)


def options(ez, **changes) -> dict[str, object]:
    return {
        **ez.task.get_ez_task("cif_asr").get_default_config(), "optim": "adam", "optim_conf": {"lr": 3e-3}, "max_epoch": EPOCHS,
        "batch_type": "unsorted", "batch_size": 8, "valid_batch_size": 8, "num_iters_per_epoch": STEPS, "num_workers": 0,
        "ngpu": 0, "seed": 1, "use_matplotlib": False, "use_tensorboard": False, "model_conf": MODEL, **changes,
    }


@pytest.fixture(scope="module")
def trained(kaldi, table, tmp_path_factory):
    """An ESPnet-EZ run of 150 steps on a Kaldi directory: its folder, and the losses of its epochs."""
    ez = espnet_ez.import_espnetez()
    folder = tmp_path_factory.mktemp("ez")
    masks = {
        "apply_time_warp": True, "time_warp_window": 5, "freq_mask_width_range": [0, 10], "num_freq_mask": 1,
        "time_mask_width_range": [0, 5], "num_time_mask": 1,
    }
    trainer = ez.Trainer(
        task="cif_asr", output_dir=str(folder / "exp"), stats_dir=str(folder / "stats"), train_dump_dir=kaldi / "train",
        valid_dump_dir=kaldi / "valid", data_info={"speech": ("wav.scp", "sound"), "text": ("text", "text")},
        train_config=options(
            ez, token_list=str(table / "tokens.txt"), token_table=str(table), specaug="specaug", specaug_conf=masks
        ),
    )
    trainer.collect_stats()
    trainer.train_config.normalize = "global_mvn"
    trainer.train_config.normalize_conf = {"stats_file": str(folder / "stats/train/feats_stats.npz")}
    with epoch_losses() as losses:
        trainer.train()
    return folder / "exp", losses


@pytest.mark.slow
def test_an_espnet_ez_run_learns(trained) -> None:
    experiment, losses = trained
    assert len(losses) == EPOCHS
    assert losses[-1] < 0.7 * losses[0]
    assert (experiment / "valid.acc.ave.pth").exists()


@pytest.mark.slow
def test_what_espnet_trained_decodes_the_same_with_us(trained, kaldi, tmp_path) -> None:
    experiment, _ = trained
    theirs, _ = CifAsrTask.build_model_from_file(experiment / "config.yaml", experiment / "valid.acc.ave.pth")
    theirs.eval()
    exported = export_experiment(experiment, tmp_path / "model")
    assert exported.name == "valid.acc.ave.pth"
    ours = CifAsr.from_pretrained(tmp_path / "model")
    cuts = list(read_kaldi_dir(kaldi / "train", Rejects()))
    hypotheses = ours.transcribe(cuts)
    found = [hypothesis.text for hypothesis in hypotheses]
    direct = [hypothesis.text for hypothesis in CifAsr(load_experiment(experiment)).transcribe(cuts)]
    expected, scores = [], []
    for cut in cuts:
        samples, _ = soundfile.read(cut.recording.sources[0].source, dtype="float32")
        fbank = theirs.extract(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
        results, _ = theirs.asr.recognise(AsrBatch([cut.id], fbank, 0.0), SearchConfig())
        expected.append(ours.table.decode(results[0].tokens))
        scores.append(results[0].score)
    assert found == direct == expected
    np.testing.assert_allclose([hypothesis.score for hypothesis in hypotheses], scores, atol=2e-3)
    assert len(set(found)) > 1  # it has learnt to tell words apart


@pytest.mark.slow
def test_espnet_goes_on_with_a_model_of_ours(trained, kaldi, tmp_path) -> None:
    """`espnet_train` on a feats.scp, from our weights and at rate zero: the weights that come out are those that went in."""
    experiment, _ = trained
    export_experiment(experiment, tmp_path / "model")
    start_experiment(tmp_path / "model", tmp_path / "start")
    for name in ("train", "valid"):
        cuts = read_kaldi_dir(kaldi / name, Rejects())
        with kaldiio.WriteHelper(f"ark,scp:{tmp_path}/{name}.ark,{tmp_path}/{name}.scp") as writer:
            for cut in cuts:
                writer(cut.id, compute_fbank(cut.load_audio()[0]).numpy())
    data = []
    for name in ("train", "valid"):
        data += [f"--{name}_data_path_and_name_and_type", f"{tmp_path}/{name}.scp,speech,kaldi_ark"]
        data += [f"--{name}_data_path_and_name_and_type", f"{kaldi}/{name}/text,text,text"]
    common = [
        "--config", f"{tmp_path}/start/config.yaml", "--input_size", "80", "--ngpu", "0", "--num_workers", "0",
        "--batch_type", "unsorted", "--batch_size", "8", "--use_matplotlib", "false", "--use_tensorboard", "false", *data,
    ]
    assert espnet_train.main([*common, "--collect_stats", "true", "--output_dir", f"{tmp_path}/stats"]) == 0
    shapes = [f"--{name}_shape_file={tmp_path}/stats/{name}/speech_shape" for name in ("train", "valid")]
    status = espnet_train.main([
        *common, *shapes, "--output_dir", f"{tmp_path}/exp", "--init_param", f"{tmp_path}/start/model.pth", "--max_epoch", "1",
        "--num_iters_per_epoch", "2", "--optim", "sgd", "--optim_conf", "lr=0.0",
    ])
    assert status == 0
    before, after = load_experiment(tmp_path / "start").model.state_dict(), load_experiment(tmp_path / "exp").model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (before["cmvn.mean_F"] != 0).any()


@pytest.mark.slow
def test_any_kaldi_directory_is_an_espnet_ez_dataset(shared_data, tmp_path) -> None:
    """8 kHz, with segments: ESPnet itself reads neither as it is."""
    source = shared_data / "fsdd_3spk"
    if not source.is_dir():
        pytest.skip(f"no {source}")
    rows = [line.split() for line in (source / "wav.scp").read_text().splitlines()][::80]
    (tmp_path / "data").mkdir()
    (tmp_path / "data/wav.scp").write_text("".join(f"{key} {source.parent / path}\n" for key, path in rows))
    (tmp_path / "data/segments").write_text("".join(f"u-{key} {key} 0.0 0.2\n" for key, _ in rows))
    (tmp_path / "data/text").write_text("".join(f"u-{key} ONE\n" for key, _ in rows))
    table = TokenTable.train(["one"], "char")
    dataset = espnet_ez.kaldi_dataset(tmp_path / "data", table)
    _, item = dataset[0]
    assert len(dataset) == len(rows)
    assert item["speech"].shape == (3200,)
    assert item["text"].tolist() == table.encode("one")
    ez = espnet_ez.import_espnetez()
    trainer = ez.Trainer(
        task="cif_asr", output_dir=str(tmp_path / "exp"), stats_dir=str(tmp_path / "stats"), train_dataset=dataset,
        valid_dataset=dataset,
        train_config=options(ez, token_list=list(table.tokens), max_epoch=2, num_iters_per_epoch=6, token_type="char"),
    )
    trainer.collect_stats()
    with epoch_losses() as losses:
        trainer.train()
    assert losses[1] < losses[0]
    assert load_experiment(tmp_path / "exp").table.tokens == table.tokens
    (tmp_path / "data/text").write_text("u-nobody ONE\n")
    with pytest.raises(DataError, match="utterances cannot be used, first"):
        espnet_ez.kaldi_dataset(tmp_path / "data", table)


# The model by itself


def arguments(**changes) -> argparse.Namespace:
    values = CifAsrTask.get_default_config()
    return argparse.Namespace(**{**values, "token_list": TOKENS, "model_conf": MODEL, **changes})


def test_its_loss_is_ours_per_token() -> None:
    torch.manual_seed(0)
    model = CifAsrTask.build_model(arguments()).eval()
    speech = torch.randn(3, 16000) * 0.1
    counts = torch.tensor([16000, 9000, 300])  # the last is shorter than a window
    text, lens = torch.tensor([[2, 3, 2], [3, -1, -1], [2, 3, -1]]), torch.tensor([3, 1, 2])
    loss, stats, weight = model(speech=speech, speech_lengths=counts, text=text, text_lengths=lens, utt_id=["a", "b", "c"])
    rows = [compute_fbank(speech[row, :count]) for row, count in enumerate(counts.tolist())]
    fbank = FbankBatch(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows]))
    expected = model.asr(AsrBatch(["a", "b", "c"], fbank, 0.0, text.clamp(min=0), lens))
    torch.testing.assert_close(loss[0], expected.total / 6)
    assert weight.item() == 6
    assert stats.keys() == {"loss", "acc", "loss_ce", "loss_ctc", "loss_quantity"}
    assert stats["loss_ctc"].item() == pytest.approx(expected.parts["ctc"].item() / 6, rel=1e-5)
    stereo = torch.stack([speech, speech * 0], 2)
    assert torch.equal(FbankFrontend()(stereo * 2, counts)[0], FbankFrontend()(speech, counts)[0])


def test_masks_of_specaug_hold_the_mean_and_only_in_training() -> None:
    masks = {"apply_time_warp": False, "apply_time_mask": False, "freq_mask_width_range": [79, 80], "num_freq_mask": 3}
    model = CifAsrTask.build_model(arguments(specaug="specaug", specaug_conf=masks, input_size=80))
    model.asr.cmvn.set_statistics(torch.full((80,), 7.0), torch.ones(80))
    seen: list[torch.Tensor] = []
    model.asr.cmvn.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    batch = {
        "speech": torch.randn(1, 50, 80), "speech_lengths": torch.tensor([50]), "text": torch.tensor([[2]]),
        "text_lengths": torch.tensor([1]),
    }
    model.train()(**batch)
    model.eval()(**batch)
    assert (seen[0] == 7.0).float().mean() > 0.9
    assert torch.equal(seen[1], batch["speech"])


def test_statistics_of_espnet_become_our_cmvn(tmp_path) -> None:
    feats = np.random.default_rng(0).normal(5.0, 2.0, (400, 80)).astype(np.float32)
    np.savez(tmp_path / "feats_stats.npz", count=400, sum=feats.sum(0), sum_square=(feats**2).sum(0))
    stats = {"stats_file": str(tmp_path / "feats_stats.npz")}
    model = CifAsrTask.build_model(arguments(normalize="global_mvn", normalize_conf=stats))
    np.testing.assert_allclose(model.asr.cmvn.mean_F.numpy(), feats.mean(0), rtol=1e-4)
    np.testing.assert_allclose(model.asr.cmvn.std_F.numpy(), feats.std(0), rtol=1e-3)


def test_features_without_normalisation_are_said(caplog) -> None:
    CifAsrTask.build_model(arguments())
    assert "give --normalize global_mvn" in caplog.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frontend_conf": {"fs": "8k"}}, "format wav.scp with --fs 16k"),
        ({"input_size": 83}, "features of 83 bins"),
        ({"model_conf": {"encoder": {"widht": 3}}}, "did you mean `encoder.width`"),
        ({"model_conf": {"visual": {"kind": "clip", "path": "x"}}}, "ESPnet's data have speech alone"),
        ({"token_list": ["<blank>", "a", "<unk>", "<sos/eos>"]}, "a token table begins with <blank> and <unk>"),
        ({"token_list": None}, "token_list or token_table is needed"),
        ({"token_list": "/nowhere/tokens.txt"}, "cannot be read"),
    ],
)
def test_wrong_arguments_are_refused(changes, words) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        CifAsrTask.build_model(arguments(**changes))


def test_a_users_mistake_is_one_line_and_a_status(tmp_path, capsys) -> None:
    status = espnet_train.main([
        "--output_dir", str(tmp_path / "exp"), "--token_list", str(tmp_path / "tokens.txt"), "--ngpu", "0",
    ])
    assert status == 1
    assert "espnet_train: token_list" in capsys.readouterr().err


def test_its_options_are_espnets(capsys) -> None:
    with pytest.raises(SystemExit):
        espnet_train.main(["--help"])
    text = capsys.readouterr().out
    for option in ("--token_table", "--model_conf", "--best_model_criterion", "--specaug_conf", "--init_param"):
        assert option in text
    assert CifAsrTask.get_default_config()["num_att_plot"] == 0


# Experiments as folders


@pytest.fixture
def experiment(tmp_path) -> Path:
    """As ESPnet leaves it, untrained, of token type char."""
    model = CifAsrTask.build_model(arguments())
    folder = tmp_path / "exp"
    folder.mkdir()
    described = {
        "token_list": TOKENS, "model_conf": MODEL, "frontend": "fbank", "input_size": None,
        "token_type": "char", "bpemodel": None, "token_table": None,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(described))
    torch.save(model.state_dict(), folder / "latest.pth")
    return folder


def change(folder: Path, **values) -> None:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **values}))


def test_an_experiment_with_characters_loads(experiment) -> None:
    found = load_experiment(experiment)
    assert found.table.kind == "char"
    saved = torch.load(experiment / "latest.pth", weights_only=True)
    assert torch.equal(found.model.state_dict()["ctc_head.weight"], saved["asr.ctc_head.weight"])


def test_the_verb_goes_there_and_back(experiment, tmp_path, capsys) -> None:
    from xllm_speech.bin import espnet

    parser = argparse.ArgumentParser()
    espnet.add_arguments(parser)
    for words in (
        ["from", f"{experiment}", "--out", f"{tmp_path}/model", "--weights", "latest.pth"],
        ["to", f"{tmp_path}/model", "--out", f"{tmp_path}/start"], ["from", f"{tmp_path}/start", "--out", f"{tmp_path}/again"],
    ):
        assert espnet.run(parser.parse_args(words)) == 0
    said = capsys.readouterr().out
    assert f"{experiment}/latest.pth -> {tmp_path}/model; try: xllm-speech transcribe" in said
    assert f"--init_param {tmp_path}/start/model.pth" in said
    weights = "model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (tmp_path / "model" / weights).read_bytes()
    assert (tmp_path / "again/tokens.txt").read_bytes() == (tmp_path / "model/tokens.txt").read_bytes()


def test_an_experiment_with_bpe_takes_its_model_along(experiment, tmp_path) -> None:
    made = TokenTable.train(["one two three four five six", "seven eight nine ten"], "sentencepiece", 20)
    (tmp_path / "bpe.model").write_bytes(made.spm_model or b"")
    model = CifAsrTask.build_model(arguments(token_list=list(made.tokens)))
    torch.save(model.state_dict(), experiment / "latest.pth")
    change(experiment, token_list=list(made.tokens), token_type="bpe", bpemodel=str(tmp_path / "bpe.model"))
    found = load_experiment(experiment).table
    assert found.decode(found.encode("seven two")) == "seven two"
    (tmp_path / "bpe.model").unlink()
    with pytest.raises(CheckpointError, match=r"bpemodel .* cannot be read"):
        load_experiment(experiment)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"frontend": "default"}, "only `fbank` has a form of ours"),
        ({"encoder": "conformer"}, "another ESPnet task"),
        ({"token_type": "word"}, "`word` is not one of char, bpe"),
        ({"token_list": "tokens.txt"}, "no token_list in it"),
        ({"model_conf": {**MODEL, "eos_units": True}}, "did you mean `eos_unit`"),
        ({"model_conf": {**MODEL, "cif": {"channels": 16}}}, "of another shape"),
        ({"model_conf": {**MODEL, "loss": {"unit_weight": 0.3}}}, "2 tensors missing, first asr.unit_head.bias"),
    ],
)
def test_what_is_not_such_an_experiment_is_refused(experiment, values, words) -> None:
    change(experiment, **values)
    with pytest.raises(CheckpointError, match=re.escape(words)):
        load_experiment(experiment)


def test_missing_files_are_named_and_nothing_is_written(experiment, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"holds none of 3epoch\.pth; there is latest\.pth"):
        export_experiment(experiment, tmp_path / "model", "3epoch.pth")
    with pytest.raises(CheckpointError, match="give the output_dir of a training"):
        load_experiment(tmp_path)
    assert not (tmp_path / "model").exists()


def test_a_table_that_changed_is_noticed(experiment, tmp_path) -> None:
    TokenTable.train(["天地"], "char").save(experiment / "table")
    tokens = list(TokenTable.load(experiment / "table").tokens)
    change(experiment, token_table=str(tmp_path / "moved" / "table"), token_list=tokens)
    assert load_experiment(experiment).table.size == 5
    TokenTable.train(["天地玄黄"], "char").save(experiment / "table")
    with pytest.raises(CheckpointError, match="7 tokens, not the 5"):
        load_experiment(experiment)


def test_a_model_that_sees_pictures_does_not_go_to_espnet(tmp_path, world) -> None:
    from dataclasses import replace

    from xllm_speech.base.config import config_from_dict
    from xllm_speech.models.asr_config import VisualConfig

    config = replace(config_from_dict(MODEL, AsrModelConfig), visual=VisualConfig("vit", str(world.vision), 12))
    table = TokenTable.train(["天地"], "char")
    (tmp_path / "model").mkdir()
    save_asr(tmp_path / "model", build_asr_model(config, table.size, table.sos_id).state_dict(), config, table, FeatureConfig())
    with pytest.raises(CheckpointError, match=r"sees more than speech \(visual\.kind vit\)"):
        start_experiment(tmp_path / "model", tmp_path / "start")
    assert not (tmp_path / "start").exists()


def test_stand_ins_say_what_is_missing_and_go_away() -> None:
    from xllm_speech.base.errors import MissingDependency

    with pytest.raises(MissingDependency, match="pip install pyworld"):
        espnet_ez._StandIn("pyworld").dio()
    espnet_ez.import_espnetez()
    assert not any(isinstance(module, espnet_ez._StandIn) for module in sys.modules.values())


def test_importing_espnet_fetches_nothing(monkeypatch) -> None:
    import nltk

    from xllm_speech.neighbours.espnet_import import no_downloads

    monkeypatch.setattr(nltk, "download", lambda *_, **__: pytest.fail("reached for the network"))
    before = nltk.download
    with no_downloads():
        assert nltk.download("cmudict") is False
    assert nltk.download is before

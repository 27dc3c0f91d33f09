"""Kaldi data directories: real ones, one with everything wrong in it, and the way back."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile

from xllm_speech.base.errors import DataError
from xllm_speech.base.rejects import Rejects
from xllm_speech.features.audio import load_samples
from xllm_speech.features.fbank import load_stored
from xllm_speech.manifests.cuts import load_cuts, save_cuts, utterance_of
from xllm_speech.manifests.kaldi import prepare_kaldi, read_kaldi_dir
from xllm_speech.manifests.kaldi_export import write_kaldi_dir
from xllm_speech.manifests.speech import resolve_speech_data


def write_wav(path: Path, seconds: float, rate_hz: int = 16000, channels: int = 1, seed: int = 0) -> np.ndarray:
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, (round(seconds * rate_hz), channels)).astype(np.float32)
    soundfile.write(path, samples, rate_hz, subtype="FLOAT" if path.suffix == ".wav" else None)
    return samples


def write_table(path: Path, *lines: str | bytes) -> None:
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))


def kinds(rejects: Rejects) -> dict[str, str]:
    return {row["id"]: row["kind"] for row in rejects.rows}


def test_real_directories_with_paths_relative_to_their_parent(shared_data: Path) -> None:
    for name, rate_hz, number in (("fsdd_3spk", 8000, 1500), ("audio_cmn_1500words", 22050, 1500)):
        rejects = Rejects()
        cuts = list(read_kaldi_dir(shared_data / name, rejects))
        assert len(cuts) == number
        assert not rejects.rows
        assert {cut.sampling_rate for cut in cuts} == {rate_hz}
        assert all(utterance_of(cut).text and utterance_of(cut).speaker for cut in cuts)
        assert len(load_samples(cuts[0])) == pytest.approx(cuts[0].duration * 16000, abs=1)


def test_paths_may_be_relative_to_the_data_directory(tmp_path: Path) -> None:
    (tmp_path / "data" / "wav").mkdir(parents=True)
    write_wav(tmp_path / "data" / "wav" / "a b.wav", 1)
    write_table(tmp_path / "data" / "wav.scp", "a wav/a b.wav")
    write_table(tmp_path / "data" / "text", "a 你好")
    (cut,) = read_kaldi_dir(tmp_path / "data", Rejects())
    assert cut.recording.sources[0].source == str(tmp_path / "data" / "wav" / "a b.wav")


@pytest.fixture
def nasty(tmp_path: Path) -> Path:
    """A directory with every fault at once beside good utterances."""
    folder = tmp_path / "nasty"
    folder.mkdir()
    write_wav(folder / "long.flac", 10, 8000)
    write_wav(folder / "stereo.ogg", 3, 44100, channels=2)
    (folder / "garbage.wav").write_bytes(b"RIFF this is no sound at all" * 50)
    (folder / "empty.wav").write_bytes(b"")
    header_only = folder / "nothing.wav"
    write_wav(header_only, 0)
    table = [
        f"long {folder}/long.flac", "stereo stereo.ogg", "garbage garbage.wav", "empty empty.wav", "nothing nothing.wav",
        "gone gone.wav", f"piped cat {folder}/long.flac |", "failing sh -c 'echo kaputt >&2; exit 3' |", "folder .",
        "mute cat /dev/null |", "text-out echo hello |", "long gone.wav", "lonely", "unused stereo.ogg",
        b"gbk " + "中文.wav".encode("gbk"),
    ]
    write_table(folder / "wav.scp", *table)
    segments = [
        "z-last long 0.5 1.5", "a-first long 2.0 3.25", "over-a-little long 9.0 10.4", "over-too-much long 9.0 10.6",
        "starts-after long 11 12", "negative long -1 2", "backwards long 3 2", "instant long 3 3", "to-the-end long 8 -1",
        "nan long nan 3", "words long zero one", "few long 1", "no-such-recording other 0 1", "of-garbage garbage 0 1",
        "of-empty empty 0 1", "of-nothing nothing 0 1", "of-gone gone 0 1", "of-piped piped 1 2", "of-failing failing 0 1",
        "of-folder folder 0 1", "of-mute mute 0 1", "of-text text-out 0 1", "of-stereo stereo 0 1", "right stereo 1 2 1",
        "channel-seven stereo 1 2 7", "untranscribed long 4 5", "wordless long 5 6", "twice long 6 7", "twice long 7 8",
        "tiny long 1.00001 1.00002",
    ]
    write_table(folder / "segments", *segments)
    spoken = [line.split()[0] for line in segments if not line.startswith(("untranscribed", "wordless"))]
    texts = [f"{name} 文 text {place}" for place, name in enumerate(dict.fromkeys(spoken))]
    write_table(
        folder / "text", "\ufeff" + texts[0], "", *texts[1:], "wordless ", "without-audio 没有声音", "twice 又一次",
        b"not-utf8 " + "中文".encode("gbk"),
    )
    write_table(folder / "utt2spk", "z-last s1", "a-first s2")
    write_table(folder / "cmvn.scp", "s1 cmvn.ark:3")
    return folder


def test_every_fault_is_named_and_nothing_is_lost(nasty: Path) -> None:
    rejects = Rejects()
    cuts = {cut.id: cut for cut in read_kaldi_dir(nasty, rejects)}
    assert set(cuts) == {"z-last", "a-first", "over-a-little", "to-the-end", "of-piped", "of-stereo", "right", "twice"}
    found = kinds(rejects)
    assert found == {
        "over-too-much": "segment-outside", "starts-after": "segment-outside", "negative": "segment-outside",
        "channel-seven": "segment-outside", "backwards": "zero-length", "instant": "zero-length", "tiny": "zero-length",
        "nan": "bad-line", "words": "bad-line", "few": "bad-line", "lonely": "bad-line", "gbk": "bad-line",
        "not-utf8": "bad-line", "no-such-recording": "missing-audio", "of-gone": "missing-audio",
        "of-folder": "missing-audio", "of-garbage": "unreadable-audio", "of-empty": "unreadable-audio",
        "of-nothing": "unreadable-audio", "of-failing": "unreadable-audio", "of-mute": "unreadable-audio",
        "of-text": "unreadable-audio", "untranscribed": "no-transcript", "wordless": "empty-transcript",
        "without-audio": "text-without-audio", "twice": "duplicate-id", "long": "duplicate-id", "unused": "unused-recording",
    }
    # The invariant: every id of every table is a cut, the recording of one, or a reject.
    mentioned = set()
    for name in ("wav.scp", "segments", "text"):
        for raw in (nasty / name).read_bytes().splitlines():
            line = raw.decode("utf-8", "replace").lstrip("\ufeff").split()
            mentioned |= set(line[:1])
    recordings = {cut.recording_id for cut in cuts.values()}
    named = {line.split()[1] for line in (nasty / "segments").read_text().splitlines()}
    assert not mentioned - set(cuts) - recordings - set(found) - named
    reason = next(row for row in rejects.rows if row["id"] == "of-failing")
    assert "kaputt" in reason["reason"]
    assert "status 3" in reason["reason"]
    place = next(row for row in rejects.rows if row["id"] == "over-too-much")
    assert place["path"] == f"{nasty / 'segments'}:4"
    assert "10.6" in place["reason"]
    assert "10.000" in place["reason"]


def test_segments_hold_the_samples_they_name(nasty: Path) -> None:
    cuts = {cut.id: cut for cut in read_kaldi_dir(nasty, Rejects())}
    whole, rate_hz = soundfile.read(nasty / "long.flac", dtype="float32")
    assert cuts["over-a-little"].end == 10.0
    assert cuts["to-the-end"].end == 10.0
    for name in ("a-first", "over-a-little", "of-piped"):
        cut = cuts[name]
        part = whole[round(cut.start * rate_hz) : round(cut.end * rate_hz)]
        np.testing.assert_array_equal(cut.load_audio()[0], part)
        assert len(load_samples(cut)) == round(cut.duration * 16000)
    stereo, _ = soundfile.read(nasty / "stereo.ogg", dtype="float32", always_2d=True)
    np.testing.assert_allclose(cuts["right"].load_audio()[0], stereo[44100:88200, 1], atol=1e-6)
    assert cuts["of-stereo"].num_channels == 2
    assert utterance_of(cuts["z-last"]).speaker == "s1"
    assert utterance_of(cuts["z-last"]).text == "文 text 0"  # the byte order mark is gone


def test_text_is_optional_when_decoding(nasty: Path) -> None:
    (nasty / "text").unlink()
    with pytest.raises(DataError, match="transcripts"):
        read_kaldi_dir(nasty, Rejects())
    cuts = {cut.id: cut for cut in read_kaldi_dir(nasty, Rejects(), need_text=False)}
    assert {"untranscribed", "wordless"} <= set(cuts)
    assert utterance_of(cuts["wordless"]).text is None


def test_prepare_writes_both_files_or_neither_manifest(nasty: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="max-rejected"):
        prepare_kaldi(nasty, tmp_path / "out", max_rejected=0.01)
    assert (tmp_path / "out" / "rejected.jsonl").is_file()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["rejected.jsonl"]
    counts = prepare_kaldi(nasty, tmp_path / "out", max_rejected=1.0)
    assert counts["cuts"] == 8
    assert counts["segment-outside"] == 4
    assert len(list(load_cuts(tmp_path / "out" / "cuts.jsonl.gz"))) == 8
    rows = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert len(rows) == counts["rejected"]
    for folder in (nasty, tmp_path / "out"):
        found = list(resolve_speech_data(folder, tmp_path / "work", max_rejected=1.0))
        assert len(found) == 8


def test_neither_manifest_nor_kaldi(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"wav\.scp"):
        resolve_speech_data(tmp_path, tmp_path)
    with pytest.raises(DataError, match="no such"):
        resolve_speech_data(tmp_path / "nowhere", tmp_path)


def test_wav_in_an_archive(tmp_path: Path) -> None:
    """ESPnet's form: WAV files one after the other in wav.ark, wav.scp pointing at byte offsets."""
    samples, offsets = [], []
    with open(tmp_path / "wav.ark", "wb") as stream:
        for place in range(3):
            samples.append(write_wav(tmp_path / "one.wav", 0.5 + place, seed=place))
            stream.write(f"u{place} ".encode())
            offsets.append(stream.tell())
            stream.write((tmp_path / "one.wav").read_bytes())
    write_table(tmp_path / "wav.scp", *(f"u{place} wav.ark:{offset}" for place, offset in enumerate(offsets)))
    write_table(tmp_path / "text", *(f"u{place} 好" for place in range(3)))
    for cut, expected in zip(read_kaldi_dir(tmp_path, Rejects()), samples, strict=True):
        np.testing.assert_array_equal(load_samples(cut), expected[:, 0])


def test_pipe_that_writes_a_header_without_sizes(tmp_path: Path) -> None:
    """sox and ffmpeg cannot know the length when they write WAV into a pipe, and say 0xFFFFFFFF."""
    samples = (np.random.default_rng(0).uniform(-0.5, 0.5, 8000) * 32767).astype(np.int16)
    header = b"RIFF" + struct.pack("<I", 0xFFFFFFFF) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
    (tmp_path / "stream").write_bytes(header + b"data" + struct.pack("<I", 0xFFFFFFFF) + samples.tobytes())
    write_table(tmp_path / "wav.scp", f"u cat {tmp_path}/stream |")
    write_table(tmp_path / "text", "u 好")
    (cut,) = read_kaldi_dir(tmp_path, Rejects())
    np.testing.assert_allclose(load_samples(cut), samples / 32768, atol=1e-6)


def write_features(folder: Path, names: list[str], bins: int = 80, frames: int = 98) -> dict[str, np.ndarray]:
    matrices = {
        name: np.random.default_rng(place).normal(size=(frames, bins)).astype(np.float32) for place, name in enumerate(names)
    }
    kaldiio.save_ark(str(folder / "feats.ark"), matrices, scp=str(folder / "feats.scp"))
    return matrices


def test_features_without_audio(tmp_path: Path) -> None:
    matrices = write_features(tmp_path, ["a", "b", "c"])
    with open(tmp_path / "feats.scp", "a") as stream:
        stream.write(f"d {tmp_path}/feats.ark:99999999\n")
    write_table(tmp_path / "text", "a 一", "b 二", "c 三", "d 四")
    rejects = Rejects()
    cuts = list(read_kaldi_dir(tmp_path, rejects))
    assert kinds(rejects) == {"d": "unreadable-features"}
    save_cuts(cuts, tmp_path / "cuts.jsonl.gz")
    for cut in load_cuts(tmp_path / "cuts.jsonl.gz"):
        np.testing.assert_array_equal(load_stored(cut), matrices[cut.id])


def test_features_of_another_width_give_way_to_the_audio(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", 1)
    write_features(tmp_path, ["a", "b"], bins=13)
    write_table(tmp_path / "wav.scp", "a a.wav")
    write_table(tmp_path / "text", "a 一", "b 二")
    rejects = Rejects()
    (cut,) = read_kaldi_dir(tmp_path, rejects)
    assert cut.id == "a"
    assert not cut.has_features
    assert kinds(rejects) == {"b": "unreadable-features"}


def test_export_and_back(nasty: Path, tmp_path: Path) -> None:
    cuts = [cut for cut in read_kaldi_dir(nasty, Rejects()) if cut.id != "right"]
    counts = write_kaldi_dir(cuts, tmp_path / "export")
    assert counts["segments"] == 7
    names = (tmp_path / "export" / "text").read_bytes().split(b"\n")[:-1]
    assert names == sorted(names)
    again = {cut.id: cut for cut in read_kaldi_dir(tmp_path / "export", Rejects())}
    for cut in cuts:
        other = again[cut.id]
        assert (other.start, other.duration) == pytest.approx((cut.start, cut.duration), abs=1e-6)
        assert utterance_of(other).text == utterance_of(cut).text
        np.testing.assert_array_equal(other.load_audio(), cut.load_audio())


def test_export_of_whole_recordings_has_no_segments(shared_data: Path, tmp_path: Path) -> None:
    cuts = list(read_kaldi_dir(shared_data / "dspspeech20_10spk", Rejects()))
    write_kaldi_dir(cuts, tmp_path / "export")
    assert not (tmp_path / "export" / "segments").exists()
    for name in ("text", "utt2spk", "spk2utt"):
        ours = {line.split()[0]: line.split()[1:] for line in (tmp_path / "export" / name).read_text().splitlines()}
        theirs = (shared_data / "dspspeech20_10spk" / name).read_text().splitlines()
        assert ours == {line.split()[0]: line.split()[1:] for line in theirs}
    assert len(list(read_kaldi_dir(tmp_path / "export", Rejects()))) == len(cuts)


def test_export_refuses_what_kaldi_cannot_hold(nasty: Path, tmp_path: Path) -> None:
    cuts = list(read_kaldi_dir(nasty, Rejects()))
    shutil.rmtree(tmp_path / "export", ignore_errors=True)
    for bad in (cuts[0].perturb_speed(0.9), cuts[0].with_id("two words"), cuts[1]):
        with pytest.raises(DataError, match=r"perturbed|blanks|twice"):
            write_kaldi_dir([*cuts[1:], bad], tmp_path / "export")
    assert not (tmp_path / "export").exists()
    write_kaldi_dir(cuts, tmp_path / "export")
    assert "remix 2 |" in (tmp_path / "export" / "wav.scp").read_text()

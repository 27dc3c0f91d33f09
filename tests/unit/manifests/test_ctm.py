"""ctm and stm in and out, and features through a Kaldi data directory and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import Recording

from xllm_speech.base.errors import DataError
from xllm_speech.base.rejects import Rejects
from xllm_speech.manifests.ctm import (
    CtmWord,
    StmSegment,
    cuts_of_stm,
    read_ctm,
    read_stm,
    stm_of_cuts,
    write_ctm,
    write_stm,
)
from xllm_speech.manifests.cuts import load_cuts, utterance_of
from xllm_speech.manifests.kaldi import read_kaldi_dir
from xllm_speech.manifests.kaldi_export import write_kaldi_dir


def test_a_ctm_comes_back_sorted(tmp_path: Path) -> None:
    words = [
        CtmWord("b", 1, 0.5, 0.75, "天", 0.25), CtmWord("a", 0, 1.0, 1.25, "hello"), CtmWord("a", 0, 0.0, 1.0, "地", 1.0),
    ]
    assert write_ctm(tmp_path / "x.ctm", words) == 3
    assert read_ctm(tmp_path / "x.ctm") == [words[2], words[1], words[0]]


def test_a_ctm_of_sclite_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.ctm").write_text(";; made by hand\n7654 A 11.34 0.2 YES .5\n\n7654 b 12.00 0.34 YOU NA ;; sure\n")
    first, second = read_ctm(tmp_path / "x.ctm")
    assert (first.recording, first.channel, first.start_sec, first.text, first.confidence) == ("7654", 0, 11.34, "YES", 0.5)
    assert first.end_sec == pytest.approx(11.54)
    assert (second.channel, second.confidence) == (1, None)


def test_what_transcribe_writes_is_read(tmp_path: Path) -> None:
    from xllm_speech.infer.formats import write_hypotheses
    from xllm_speech.records import Hypothesis, TimedToken

    tokens = [TimedToken("天", 0.1, 0.34, 0.9), TimedToken("地", 0.34, 0.8, 0.8)]
    write_hypotheses([Hypothesis("u", "天地", tokens, recording="r", channel=1)], tmp_path / "x.ctm", "ctm")
    found = read_ctm(tmp_path / "x.ctm")
    assert [(word.recording, word.channel, word.text) for word in found] == [("r", 1, "天"), ("r", 1, "地")]
    assert [word.confidence for word in found] == [0.9, 0.8]
    assert [word.end_sec for word in found] == pytest.approx([0.34, 0.8])
    write_ctm(tmp_path / "y.ctm", found)
    assert (tmp_path / "y.ctm").read_bytes() == (tmp_path / "x.ctm").read_bytes()


def test_an_stm_comes_back(tmp_path: Path) -> None:
    segments = [
        StmSegment("a", 0, "s1", 0.0, 1.5, "你好 world", ("o", "f0", "male")), StmSegment("a", 0, "s2", 1.5, 2.0, ""),
        StmSegment("b", 1, "s1", 0.25, 1.0, "IGNORE_TIME_SEGMENT_IN_SCORING"),
    ]
    assert write_stm(tmp_path / "x.stm", reversed(segments)) == 3
    assert read_stm(tmp_path / "x.stm") == segments
    assert [part.ignored for part in segments] == [False, False, True]


@pytest.fixture
def kaldi(tmp_path: Path) -> Path:
    """Two recordings with segments."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(2):
        samples = np.random.default_rng(number).uniform(-0.5, 0.5, 32000)
        soundfile.write(folder / f"r{number}.wav", samples, 16000)
    (folder / "wav.scp").write_text("r0 r0.wav\nr1 r1.wav\n")
    (folder / "segments").write_text("u1 r0 0.5 1.25\nu2 r0 1.25 2\nu3 r1 0 1.5\n")
    (folder / "text").write_text("u1 你好\nu2 再 见\nu3 hello there\n")
    (folder / "utt2spk").write_text("u1 s1\nu2 s2\nu3 s1\n")
    return folder


def test_a_data_directory_becomes_an_stm_and_cuts_again(kaldi: Path, tmp_path: Path) -> None:
    cuts = list(read_kaldi_dir(kaldi, Rejects()))
    write_stm(tmp_path / "x.stm", stm_of_cuts(cuts))
    assert (tmp_path / "x.stm").read_text().splitlines()[0] == "r0 1 s1 0.500 1.250 你好"
    again = list(cuts_of_stm(read_stm(tmp_path / "x.stm"), {cut.recording.id: cut.recording for cut in cuts}))
    assert again[0].id == "r0-1-0000050-0000125"
    for old, new in zip(cuts, again, strict=True):
        assert utterance_of(new).text == utterance_of(old).text
        assert utterance_of(new).speaker == utterance_of(old).speaker
        np.testing.assert_array_equal(new.load_audio(), old.load_audio())
    write_kaldi_dir(again, tmp_path / "exported")
    assert (tmp_path / "exported/segments").read_text().splitlines()[2].split()[1:] == ["r1", "0", "1.5"]


def test_ignored_segments_make_no_cuts_and_wrong_ones_are_named(kaldi: Path) -> None:
    recordings = {"r0": Recording.from_file(kaldi / "r0.wav")}
    assert len(cuts_of_stm([StmSegment("r0", 0, "s", 0, 1, "ignore_time_segment_in_scoring")], recordings)) == 0
    one = StmSegment("r0", 0, "s", 0, 1, "x")
    for segments, words in (
        ([StmSegment("r9", 0, "s", 0, 1, "x")], "no recording called r9"),
        ([StmSegment("r0", 1, "s", 0, 1, "x")], r"r0 has channels \[1\]"),
        ([StmSegment("r0", 0, "s", 0, 9, "x")], r"ends at 9 s, r0 lasts 2\.000 s"),
        ([one, one], "the same segment twice"),
    ):
        with pytest.raises(DataError, match=words):
            cuts_of_stm(segments, recordings)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("r 1 0.0 0.5", "4 fields, expected recording"), ("r 1 zero 0.5 w", "start `zero`"), ("r 1 0 -1 w", "duration `-1`"),
        ("r 1 0 nan w", "duration `nan`"), ("r 0 0 1 w", "channel `0`"), ("r C 0 1 w", "channel `C`"),
        ("r 1 * * <ALT_BEGIN>", "alternatives"), ("r 1 0 1 w high", "confidence `high`"),
    ],
)
def test_lines_that_are_no_ctm(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "x.ctm").write_text(f"r 1 0 1 good\n{line}\n")
    with pytest.raises(DataError, match=words) as caught:
        read_ctm(tmp_path / "x.ctm")
    assert f"{tmp_path}/x.ctm:2: " in str(caught.value)


@pytest.mark.parametrize(
    ("line", "words"), [("r 1 s 0", "4 fields"), ("r 1 s 2 1 x", "from 2.0 to 1.0 s"), ("r x s 0 1 x", "channel `x`")]
)
def test_lines_that_are_no_stm(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "x.stm").write_text(f";; all\n{line}\n")
    with pytest.raises(DataError, match=words) as caught:
        read_stm(tmp_path / "x.stm")
    assert f"{tmp_path}/x.stm:2: " in str(caught.value)


def test_names_with_blanks_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be empty or hold blanks"):
        write_ctm(tmp_path / "x.ctm", [CtmWord("r", 0, 0, 1, "good"), CtmWord("r", 0, 1, 2, "two words")])
    with pytest.raises(DataError, match="cannot be empty or hold blanks"):
        write_stm(tmp_path / "x.stm", [StmSegment("r", 0, "", 0, 1, "x")])
    assert list(tmp_path.iterdir()) == []


def test_features_go_through_a_data_directory_and_back(kaldi: Path, tmp_path: Path) -> None:
    from xllm_speech.features.fbank import load_stored
    from xllm_speech.features.store import compute_features

    compute_features(read_kaldi_dir(kaldi, Rejects()), tmp_path / "fbank")
    cuts = list(load_cuts(tmp_path / "fbank/cuts.jsonl.gz"))
    counts = write_kaldi_dir(cuts, tmp_path / "exported")
    assert counts["feats.scp"] == counts["utt2num_frames"] == 3
    again = {cut.id: cut for cut in read_kaldi_dir(tmp_path / "exported", Rejects())}
    for cut in cuts:
        np.testing.assert_array_equal(load_stored(again[cut.id]), load_stored(cut))

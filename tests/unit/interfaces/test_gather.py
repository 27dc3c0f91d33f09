"""Two processes with half of the batch each compute what one with the whole batch does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from xllm_speech.interfaces.gather import gather_padded, gather_rows, world

torch.set_num_threads(1)
PROGRAM = """
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.functional import normalize

torch.set_num_threads(1)
from xllm_speech.interfaces.gather import gather_padded, gather_rows, world

mode, rank, store, out = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
if mode != "alone":
    # One that ends while the other still reads what it sent would look like a lost connection.
    def leave_together():
        dist.barrier()
        Path(f"{store}.left{rank}").touch()
        while not Path(f"{store}.left{1 - rank}").exists():
            time.sleep(0.02)
        dist.destroy_process_group()  # else gloo's threads are still running when the interpreter takes them down

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
weight = torch.randn(3, 4, requires_grad=True)
x, y = torch.randn(4, 3), torch.randn(4, 3)
rows = {"alone": slice(0, 4), "pair": slice(2 * rank, 2 * rank + 2), "unequal": slice(0, 1 + rank)}[mode]
if mode == "unequal":
    try:
        gather_padded(x[rows])
    except ValueError as error:
        print(error)
    leave_together()
    sys.exit()
mine, others = normalize(x[rows] @ weight, dim=1), normalize(y[rows] @ weight, dim=1)
own = torch.arange(len(mine)) + world()[0] * len(mine)
loss = sum(
    torch.nn.functional.cross_entropy(a @ gather_rows(b).T, own) for a, b in ((mine, others), (others, mine))
)
loss.backward()
if mode == "pair":
    dist.all_reduce(weight.grad)  # the mean over ranks, as DDP takes it
    weight.grad /= 2
    longer = gather_padded(torch.full((2, 1 + rank), 5 + rank), fill=9)
    assert longer.tolist() == [[5, 9], [5, 9], [6, 6], [6, 6]], longer
    leave_together()
torch.save(weight.grad, out)
"""


def run(mode: str, tmp_path: Path, ranks: int) -> list[str]:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, mode, str(rank), f"{tmp_path}/{mode}.store", f"{tmp_path}/{mode}{rank}.pt"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(ranks)
    ]
    try:
        ended = [process.communicate(timeout=100) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * ranks, ended
    return [out for out, _ in ended]


def test_gradients_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    run("alone", tmp_path, 1)
    run("pair", tmp_path, 2)
    whole = torch.load(tmp_path / "alone0.pt")
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"pair{rank}.pt"), whole)


def test_unequal_batches_are_refused_on_both_ranks(tmp_path: Path) -> None:
    for said in run("unequal", tmp_path, 2):
        assert "the ranks hold batches of [1, 2] items" in said


@pytest.mark.parametrize("gather", [gather_rows, gather_padded])
def test_alone_nothing_is_gathered(gather: object) -> None:
    x = torch.randn(2, 3)
    assert world() == (0, 1)
    assert gather(x) is x  # type: ignore[operator]

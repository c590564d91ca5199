"""Interrupted training goes on to the same weights: after a kill, after Ctrl-C, in the middle of a chain."""

import copy
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

import bitquant

STEPS = 6
KILLS = 5  # with either teacher: 10 random kills, in either stage
RUN = textwrap.dedent(
    """
    import os, random, signal, sys, torch, bitquant
    from safetensors.torch import load_file, save_file
    torch.set_num_threads(1)  # so that a fork carries no thread pool
    sys.path.insert(0, sys.argv[1])
    from test_resume import KILLS, STEPS, make
    made = make()

    def run(folder, kill_at):
        pid = os.fork()
        if pid:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        seen = []
        def progress(state):
            seen.append(state)
            if len(seen) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        student, teacher, batches = made
        bitquant.distill(student, teacher, batches, steps=STEPS, chain="w1a2,w1a1", stage_teacher=sys.argv[3],
                         checkpoint=folder, checkpoint_every=2, resume=True, progress=progress)
        save_file(student.state_dict(), folder + "/result.safetensors")
        os._exit(0)

    folder, chooser = sys.argv[2], random.Random(7)
    assert run(folder + "/whole", None) == 0
    whole = load_file(folder + "/whole/result.safetensors")
    for trial in range(KILLS):
        mine = f"{folder}/{trial}"
        assert run(mine, chooser.randint(1, 2 * STEPS)) == -signal.SIGKILL
        assert run(mine, None) == 0
        again = load_file(mine + "/result.safetensors")
        assert whole.keys() == again.keys() and all(torch.equal(whole[k], again[k]) for k in whole)
    print("equal", KILLS)
    """
)


def make():
    """A small student, its teacher and data, the same at every call."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(16, 2, 24, dropout=0.1, batch_first=True)
    teacher = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    batches = [torch.randn(4, 5, 16) for _ in range(4)]
    student = copy.deepcopy(teacher)
    bitquant.quantize_(student, "bit-plus", batches[0])
    return student, teacher, batches


@pytest.mark.parametrize("teacher_kind", ["float", "previous"])
def test_killed_runs_end_in_the_same_weights(tmp_path, teacher_kind):
    command = [sys.executable, "-c", RUN, os.path.dirname(__file__), str(tmp_path), teacher_kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["equal", str(KILLS)], done.stderr


def test_ctrl_c_saves_the_step_and_raises(tmp_path):
    student, teacher, batches = make()
    whole, handler = copy.deepcopy(student), signal.getsignal(signal.SIGINT)  # ignored, in a shell's background job
    bitquant.distill(whole, teacher, batches, steps=STEPS)

    def press(state):
        if state["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    interrupted = copy.deepcopy(student)
    with pytest.raises(KeyboardInterrupt):
        bitquant.distill(interrupted, teacher, batches, steps=STEPS, checkpoint=tmp_path / "c", progress=press)
    assert signal.getsignal(signal.SIGINT) is handler
    seen = []
    bitquant.distill(
        student, teacher, batches, steps=STEPS, checkpoint=tmp_path / "c", resume=True, progress=seen.append
    )
    assert len(seen) < STEPS
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), whole.parameters(), strict=True))


def test_dropout_resumes_exactly(tmp_path):
    student, teacher, batches = make()
    whole, second = copy.deepcopy(student), copy.deepcopy(student)
    settings = {"steps": 4, "dropout": True, "checkpoint_every": 2}
    bitquant.distill(whole, teacher, batches, **settings)

    def stop(state):
        if state["step"] == 3:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        bitquant.distill(student, teacher, batches, checkpoint=tmp_path, progress=stop, **settings)
    bitquant.distill(second, teacher, batches, checkpoint=tmp_path, resume=True, **settings)
    assert all(torch.equal(a, b) for a, b in zip(second.parameters(), whole.parameters(), strict=True))


def test_other_settings_are_refused(tmp_path):
    student, teacher, batches = make()
    bitquant.distill(student, teacher, batches, steps=2, checkpoint=tmp_path, checkpoint_every=1)
    with pytest.raises(ValueError, match=r"other settings \(lr: 0.004 then, 0.5 now; steps: 2 then, 3 now\)"):
        bitquant.distill(student, teacher, batches, steps=3, lr=0.5, checkpoint=tmp_path, resume=True)


def test_damaged_checkpoint_is_named(tmp_path):
    student, teacher, batches = make()
    (tmp_path / "training.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(ValueError, match="training.safetensors is damaged"):
        bitquant.distill(student, teacher, batches, steps=1, checkpoint=tmp_path, resume=True)


def test_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    student, teacher, batches = make()
    bitquant.distill(student, teacher, batches, steps=2, checkpoint=tmp_path, checkpoint_every=1)
    before = (tmp_path / "training.safetensors").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bitquant.distillation.state.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        bitquant.distill(student, teacher, batches, steps=2, checkpoint=tmp_path, checkpoint_every=1)
    assert (tmp_path / "training.safetensors").read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["training.safetensors"]

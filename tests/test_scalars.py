"""The report on TensorBoard: tags and numbers, through a writer made by hand and through the real one."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from plain import run_traced
from sample_reports import SAMPLES, curve, gan, quickstart, rnn, row, small, stats
from test_examples import readme_example
from test_hostile import PAYLOADS, poisoned, whole_report

from gradmagic.report import Report

TRAINING = """
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 4)
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
    def forward(self, x):
        h = self.fc(x)
        return self.blocks[0](h).tanh()
model = Net()
optimizer = torch.optim.SGD(model.parameters(), 0.1)
out = model(torch.randn(5, 3))
loss = out.pow(2).mean()
before = {name: p.detach().clone() for name, p in model.named_parameters()}
loss.backward()
optimizer.step()
"""


class Writer:
    """Takes numbers as TensorBoard's does."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.taken.append((tag, scalar_value, global_step))


def written(report: Report, step: int = 0) -> dict[str, float]:
    writer = Writer()
    report.to_tensorboard(writer, step)
    assert all(at == step and type(value) is float for _, value, at in writer.taken)
    numbers = {tag: value for tag, value, _ in writer.taken}
    assert len(numbers) == len(writer.taken), "a tag comes twice"
    return numbers


def test_each_gradient_with_a_name_is_written_under_its_module() -> None:
    """Against plain PyTorch, bit for bit; and the update ratio as the weights give it."""
    torch.manual_seed(0)
    report, namespace = run_traced(TRAINING)
    numbers = written(report, 7)
    model, before = namespace["model"], namespace["before"]
    assert numbers["root/loss"] == namespace["loss"].item()
    assert numbers["grad_norm/loss"] == 1.0
    for module, name in (("fc", "weight"), ("fc", "bias"), ("blocks.0", "weight"), ("blocks.0", "bias")):
        weight, old = model.get_parameter(f"{module}.{name}"), before[f"{module}.{name}"]
        assert numbers[f"grad_norm/model.{module}/{name}"] == torch.linalg.vector_norm(weight.grad).item()
        ratio = (torch.linalg.vector_norm(weight - old) / torch.linalg.vector_norm(old)).item()
        assert numbers[f"update_ratio/model.{module}/{name}"] == pytest.approx(ratio, rel=1e-5)
    assert numbers["grad_norm/model.fc/h"] == report["h"].grad.norm  # type: ignore[union-attr]  # it has a gradient


def test_what_has_no_name_or_no_gradient_is_left_out() -> None:
    """A tag has to mean the same at every step."""
    assert written(quickstart()) == {
        "root/l": 16.0,
        "grad_norm/w": 16.0,
        "grad_norm/y": 16.0,
        "grad_norm/z": 8.0,
        "grad_norm/l": 1.0,
    }
    assert not [tag for tag in written(rnn()) if "encoder" in tag or "@" in tag]


def test_each_loss_has_its_last_value() -> None:
    """Whatever ran backward last."""
    numbers = written(gan())
    assert (numbers["root/lossD"], numbers["root/lossG"]) == (0.9, 0.71)
    assert numbers["update_ratio/D.weight"] == 9e-4


def test_a_name_that_comes_again_is_numbered() -> None:
    """Also where only the signs differ that a tag cannot have; the first keeps its name, so that tags are stable."""
    names = ["h", "h", "h_2", "hs[t]", "hs(t)", "h"]
    report = Report(rows=[row(name, line, grad=small(float(line))) for line, name in enumerate(names, 2)])
    assert written(report) == {
        "grad_norm/h": 2.0,
        "grad_norm/h_2": 3.0,
        "grad_norm/h_2_2": 4.0,
        "grad_norm/hs_t_": 5.0,
        "grad_norm/hs_t__2": 6.0,
        "grad_norm/h_3": 7.0,
    }


def test_the_loss_scale_is_left_out() -> None:
    """It changes from step to step, and would be all that one sees."""
    report = Report(rows=[row("w", 2, grad=small(2048.0)), row("loss", 3, grad=small(1.0))], scale=1024.0)
    report = replace(report, root=report.rows[1])
    assert written(report) == {"grad_norm/w": 2.0, "grad_norm/loss": 1.0}


def test_nan_is_written_and_what_has_no_numbers_is_not() -> None:
    """NaN is news; a gradient on the meta device has none to tell."""
    rows = [row("a", 2, grad=stats(math.nan, nan_count=3)), row("b", 3, grad=stats(math.nan))]
    numbers = written(Report(rows=[*rows, row("c", 4, kind="parameter", updates=curve(math.nan))]))
    assert list(numbers) == ["grad_norm/a", "update_ratio/c"]
    assert all(map(math.isnan, numbers.values()))


@pytest.mark.parametrize("name", SAMPLES)
def test_every_tag_has_only_signs_that_may_stand_in_one(name: str) -> None:
    """At most two slashes: kind, module, name."""
    for tag in written(SAMPLES[name]()):
        assert re.fullmatch(r"(root|grad_norm|update_ratio)(/[\w.-]+){1,2}", tag)
        tag.encode()


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_hostile_names_are_harmless_in_tags(payload: str) -> None:
    """No markup, no path that leads elsewhere, nothing that cannot be stored."""
    for tag in written(poisoned(whole_report(), payload)):
        assert not re.search(r"[^\w./-]", tag)
        tag.encode()


def test_a_writer_that_is_none_is_told_what_is_missing() -> None:
    """With the line that makes one."""
    wrong: Any = "runs/1"
    with pytest.raises(TypeError, match=r"a str has no add_scalar\(tag, value, step\); torch\.utils\.tensorboard"):
        rnn().to_tensorboard(wrong, 0)


def test_tensorboard_reads_back_what_was_written(tmp_path: Path) -> None:
    """Through its own files, hostile names included."""
    pytest.importorskip("tensorboard", reason="pip install tensorboard, to write to the real one")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    report = replace(rnn(), rows=[*rnn().rows, row("重み🔥[0] <b>/\ud800", 2, grad=small(0.5))])
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(3):
            report.to_tensorboard(writer, step)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    expected = written(report)
    assert set(events.Tags()["scalars"]) == set(expected)
    for tag, value in expected.items():
        kept = [(event.step, event.value) for event in events.Scalars(tag)]
        assert kept == [(step, pytest.approx(value, rel=1e-6)) for step in range(3)]


def test_readmes_example_fills_a_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten steps of a training, with the tags that its comment names."""
    pytest.importorskip("tensorboard", reason="pip install tensorboard, to write to the real one")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    source = readme_example("tensorboard")
    file = tmp_path / "train.py"
    file.write_text(source, encoding="utf-8")
    exec(compile(source, str(file), "exec"), {"__name__": "__main__"})
    events = EventAccumulator("runs/linear")
    events.Reload()
    for tag in re.findall(r"\w+/[\w/]+", source.split("step)  # ")[1]):
        assert [event.step for event in events.Scalars(tag)] == list(range(10))

"""Rows inside modules, folded: what one sees of a deep model at a glance, and what stays in sight. Real models."""

from __future__ import annotations

import math
import re

import pytest
from plain import run_traced
from rich.cells import cell_len
from sample_reports import row, stats

from gradmagic.records import Finding, Source
from gradmagic.render.build import build_view
from gradmagic.render.folding import FLAT
from gradmagic.render.html import MOST_BYTES, render_html
from gradmagic.render.text import render_text
from gradmagic.render.view import RowView
from gradmagic.report import Report, ReportOptions

ENCODER = """torch.manual_seed(0)
layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
model = torch.nn.TransformerEncoder(layer, 24)
x = torch.randn(2, 3, 16)
loss = model(x).pow(2).mean()
"""
CUT = """layers = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(30)])
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.front, self.back = layers[:15], layers[15:]
    def forward(self, x):
        return self.back(self.front(x).detach())
net = Net()
loss = net(torch.randn(2, 4)).sum()
"""


def shown(report: Report, **options: object) -> dict[str, RowView]:
    """The lines of the table, by what they are called."""
    view = build_view(report.with_options(ReportOptions(**options)))  # type: ignore[arg-type]
    return {line.label.text: line for line in view.rows}


def test_a_deep_model_reads_at_a_glance() -> None:
    """One line for each of its 24 layers, in order, with all that fits on a screen or two."""
    lines = shown(run_traced(ENCODER)[0])
    assert [name for name in lines if name.startswith("model.layers.")] == [f"model.layers.{i}" for i in range(24)]
    assert len(lines) <= FLAT
    assert lines["model.layers.7"].op == "TransformerEncoderLayer"
    assert "loss" in lines


def test_a_fold_has_the_norm_of_all_its_parameters_together() -> None:
    """As `clip_grad_norm_` has it, to the last bit that a float has room for."""
    report, namespace = run_traced(ENCODER)
    gradients = [parameter.grad for parameter in namespace["model"].layers[3].parameters()]
    total = math.sqrt(sum(float(gradient.double().pow(2).sum()) for gradient in gradients))
    assert float(shown(report)["model.layers.3"].grad.norm) == pytest.approx(total, rel=5e-3)


def test_a_fold_opens_to_its_rows() -> None:
    """By the names they have inside of the module, each with its gradient."""
    fold = shown(run_traced(ENCODER)[0])["model.layers.3"]
    inside = {each.name: each for each in fold.folded}
    assert {"self_attn.in_proj_weight", "linear1.weight", "norm2.bias"} <= set(inside)
    assert inside["linear1.weight"].grad.bar is not None


def test_a_short_table_is_flat() -> None:
    """Nothing is folded that fits on a screen."""
    source = "m = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())\nloss = m(torch.ones(1, 2)).sum()"
    assert not any(line.folded for line in shown(run_traced(source)[0]).values())


@pytest.mark.parametrize(
    ("options", "folds"),
    [({"depth": 0}, {"model", "layer"}), ({"depth": 1}, {"model.layers", "layer.self_attn"}), ({"all": True}, set())],
)
def test_the_depth_says_how_far_modules_are_opened(options: dict[str, object], folds: set[str]) -> None:
    """0 is a line for each model; `all` folds nothing."""
    lines = shown(run_traced(ENCODER)[0], **options)
    found = {name for name, line in lines.items() if line.folded}
    assert folds <= found if folds else not found


@pytest.mark.parametrize("options", [{"sort": "norm"}, {"filter": "linear1"}, {"rows": 500}])
def test_in_another_order_or_where_rows_are_asked_for_nothing_is_folded(options: dict[str, object]) -> None:
    """A fold stands where its first row ran."""
    assert not any(line.folded for line in shown(run_traced(ENCODER)[0], **options).values())


def test_the_guilty_row_is_never_hidden_in_a_fold() -> None:
    """The cut stands between the layers before and behind it, and the folds that it concerns carry its sign."""
    report = run_traced(CUT)[0]
    lines = shown(report)
    guilty = lines["self.front(x).detach()"]
    assert not guilty.folded
    assert lines["net.front.3"].severity == "warning"
    assert lines["net.front.3"].grad.style == "error"
    text = render_text(report, 100)
    assert re.search(r"▲ ▸ net\.front\.3 .* None", text)


def test_a_finding_links_to_its_row() -> None:
    """The link leads to a line of the table that is there, and to another one in another report."""
    first, second = (render_html(run_traced(source)[0]) for source in (CUT, CUT.replace("net", "model")))
    links, targets = (set(re.findall(pattern, first)) for pattern in (r'href="#([^"]+)"', r' id="([^"]+)"'))
    assert links
    assert links <= targets
    assert targets.isdisjoint(re.findall(r' id="([^"]+)"', second))


def test_the_tooltip_of_a_row_has_what_there_is_no_column_for() -> None:
    """The whole expression, the autograd node, dtype and device, and the inner steps."""
    view = shown(
        run_traced("w = torch.ones(3, 8, requires_grad=True)\nloss = torch.nn.functional.normalize(w).sum()")[0]
    )
    title = next(line.title for name, line in view.items() if "normalize" in name and line.inner)
    assert "torch.nn.functional.normalize(w)" in title
    assert "float32 on cpu" in title
    assert "inner steps: " in title


@pytest.mark.parametrize("count", [1, 20, 200, 20_000])
@pytest.mark.parametrize("all_rows", [False, True])
def test_the_html_of_a_report_stays_small(count: int, all_rows: bool) -> None:
    """What is left out is told in one line that says how to get it."""
    long = {"expression": "f(x)" * 60, "note": "`abc` is bad " * 20}
    rows = [row(f"name{n}", n, grad=stats(1.0 + n), **(long if n % 2 else {})) for n in range(count)]
    source = Source("\n".join(f"name{n} = f(x)  # {'words ' * 10}" for n in range(count)))
    html = render_html(Report(rows=rows, source=source, options=ReportOptions(all=all_rows)))
    assert len(html.encode()) <= MOST_BYTES
    assert ("left out" in html) is (count > 200) or count == 200


@pytest.mark.parametrize("count", [300, 900])
def test_the_rows_that_are_left_out_are_counted_right(count: int) -> None:
    """However often the table had to be made smaller, those shown and those left out are all of them."""
    rows = [row(f"name{n}", n, grad=stats(1.0), note="x" * (10 if n < count // 2 else 900)) for n in range(count)]
    rows = rows[::-1]
    html = render_html(Report(rows=rows))
    (left_out,) = re.findall(r"(\d+) more rows left out", html)
    assert len(re.findall(r"<b>name\d+</b>", html)) + int(left_out) == count


def test_many_findings_with_long_errors_stay_small_too() -> None:
    """The most severe are there."""
    findings = [
        Finding(kind="nan_value", severity="error", message="m " * 800, detail="d " * 5_000, rows=(0,))
        for _ in range(80)
    ]
    html = render_html(Report(rows=[row("h", 1)], findings=findings))
    assert len(html.encode()) <= MOST_BYTES
    assert "more findings" in html


@pytest.mark.parametrize("width", [60, 100, 200])
def test_folds_fit_the_terminal(width: int) -> None:
    """Also in ASCII."""
    for ascii_only in (False, True):
        text = render_text(run_traced(ENCODER)[0], width, ascii_only=ascii_only)
        assert max(map(cell_len, text.split("\n"))) <= width
        assert not ascii_only or text.isascii()


def test_a_hostile_module_path_is_text() -> None:
    """In the line of the fold and inside of it."""
    path = "m.<script>alert(1)</script>"
    rows = [row(f"{path}.w{n}", 1, module=path, module_type="<b>", grad=stats(1.0)) for n in range(3)]
    html = render_html(Report(rows=rows, options=ReportOptions(depth=0)))
    assert "<script>" not in html
    assert "<b>&" not in html
    assert "&lt;script&gt;" in html

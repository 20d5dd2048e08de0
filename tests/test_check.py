"""`--check` and `report.check`: gradients derived by hand, beside those of a real run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sample_reports
import torch
from plain import run_traced
from shells import Session
from test_examples import readme_example
from test_hostile import PAYLOADS

from gradmagic.checking import checked
from gradmagic.checks import GradientCheck, GradientChecks
from gradmagic.entries import references_of_ours
from gradmagic.pairing import PATTERNS, checked_patterns, derived_names, parsed_pairs, subjects
from gradmagic.render.checks import render_html, render_text
from gradmagic.render.function_checks import render_text as functions_text
from gradmagic.report import FindingsError, Report
from gradmagic.verdicts import difference

NETWORK = """torch.manual_seed(0)
x = torch.randn(32, 10)
y = torch.randint(0, 5, (32,))
W1 = torch.randn(10, 16, requires_grad=True)
b1 = torch.randn(16, requires_grad=True)
W2 = torch.randn(16, 5, requires_grad=True)
b2 = torch.zeros(5, requires_grad=True)
z = x @ W1 + b1
mu = z.mean(0, keepdim=True)
zc = z - mu
var = zc.pow(2).sum(0, keepdim=True) / 31
inv = (var + 1e-5) ** -0.5
zn = zc * inv
h = torch.tanh(zn)
logits = h @ W2 + b2
m = logits.max(1, keepdim=True).values
n = logits - m
e = n.exp()
s = e.sum(1, keepdim=True)
p = e / s
logp = p.log()
loss = -logp[range(32), y].mean()
"""
DERIVATION = """dlogp = torch.zeros_like(logp)
dlogp[range(32), y] = -1.0 / 32
dp = dlogp / p
ds = (-dp * e / s**2).sum(1, keepdim=True)
de = dp / s + ds
dn = de * e
dm = -dn.sum(1, keepdim=True)
dlogits = dn + torch.nn.functional.one_hot(logits.max(1).indices, 5) * dm
dh = dlogits @ W2.T
dW2 = h.T @ dlogits
db2 = dlogits.sum(0)
dzn = dh * (1 - h**2)
dinv = (dzn * zc).sum(0, keepdim=True)
dvar = dinv * -0.5 * (var + 1e-5) ** -1.5
dzc = dzn * inv + dvar * 2 * zc / 31
dmu = -dzc.sum(0, keepdim=True)
dz = dzc + dmu / 32
dW1 = x.T @ dz
db1 = dz.sum(0)
"""
COUNT = 18


def derived(*changes: tuple[str, str], graph: bool = False, then: str = "") -> GradientChecks:
    """The network, and its derivation with these changes."""
    derivation = DERIVATION
    for old, new in changes:
        assert derivation.count(old) == 1
        derivation = derivation.replace(old, new)
    body = derivation if graph else "with torch.no_grad():\n" + re.sub("^", "    ", derivation, flags=re.MULTILINE)
    return check(NETWORK + then + body, backward="auto" if then else "loss")


def check(source: str, pairs: dict[str, str] | None = None, backward: str = "auto", **variables: Any) -> GradientChecks:
    """What a cell's own gradients are worth."""
    report, namespace = run_traced(source, backward, **variables)
    return report.check(pairs, namespace=namespace)


def only(checks: GradientChecks) -> GradientCheck:
    """The one that is wrong in its own right."""
    (found,) = (check for check in checks.wrong if check.cause != "inherited")
    return found


# ---- right ones


@pytest.mark.parametrize("graph", [False, True], ids=["no_grad", "with a graph"])
def test_a_right_derivation_of_a_network_is_right_in_every_line(graph: bool) -> None:
    """Eighteen gradients through batch norm and softmax; those that are zero in exact arithmetic (`m`, `b1`) too."""
    checks = derived(graph=graph)
    assert len(checks) == COUNT
    assert {check.verdict for check in checks} == {"exact", "close"}
    assert not checks.wrong
    assert checks["dlogp"].verdict == "exact"
    assert checks["dlogp"].max_difference == 0.0
    assert not checks.findings()
    checks.raise_for_wrong()


def test_what_is_compared_is_the_gradient_of_plain_pytorch() -> None:
    """`gradient` and `given` are those elements of an untraced run, bit for bit."""
    checks = derived(("-1.0 / 32", "-1.5 / 32"))
    namespace: dict[str, Any] = {"torch": torch}
    exec(NETWORK + "h.retain_grad()\nloss.backward()", namespace)
    found = checks["dh"]
    assert found.index is not None
    assert found.gradient == namespace["h"].grad[found.index].item()
    assert found.max_difference == pytest.approx(0.5 * abs(found.gradient), rel=1e-5)
    assert found.max_difference == pytest.approx(0.5 * float(namespace["h"].grad.abs().max()), rel=1e-5)


def test_a_gradient_that_pytorch_itself_gives_is_exact() -> None:
    """`torch.autograd.grad` runs the same operations."""
    checks = check(
        "w = torch.randn(7, requires_grad=True)\nh = w.exp()\nloss = h.sum()\n"
        "dw, dh = torch.autograd.grad(loss, [w, h], retain_graph=True)\n"
    )
    assert [(each.name, each.verdict) for each in checks] == [("dw", "exact"), ("dh", "exact")]


@pytest.mark.parametrize("own", [False, True], ids=["by gradtrace", "by the cell"])
def test_it_does_not_matter_who_runs_backward(own: bool) -> None:
    """The cell's own `loss.backward()` uses the graph up; the verdicts stay the same."""
    checks = derived(then="loss.backward()\n" if own else "")
    assert {check.verdict for check in checks} == {"exact", "close"}


# ---- mistakes, and their causes

MISTAKES = [
    pytest.param(("db2 = dlogits.sum(0)", "db2 = dlogits"), "db2", "sum", "db2 = db2.sum(0)", id="no sum"),
    pytest.param(
        ("db2 = dlogits.sum(0)", "db2 = dlogits.sum(0, keepdim=True)"),
        "db2",
        "reshaped",
        "db2 = db2.reshape(5)",
        id="keepdim",
    ),
    pytest.param(("dW2 = h.T @ dlogits", "dW2 = dlogits.T @ h"), "dW2", "transposed", "dW2 = dW2.T", id="transposed"),
    pytest.param(("-1.0 / 32", "-1.0"), "dlogp", "factor", "dlogp = dlogp / 32", id="batch"),
    pytest.param(("-1.0 / 32", "1.0 / 32"), "dlogp", "sign", "dlogp = -dlogp", id="sign"),
    pytest.param(("dmu = -dzc", "dmu = dzc"), "dmu", "sign", "dmu = -dmu", id="sign further down"),
    pytest.param(("dinv * -0.5", "dinv * 0.25"), "dvar", "factor", "dvar = -dvar * 2", id="factor and sign"),
    pytest.param(("de = dp / s + ds", "de = dp / s"), "de", "missing_use", "what `ds` gives", id="second use"),
    pytest.param(("dz = dzc + dmu / 32", "dz = dzc"), "dz", "missing_use", "what `dmu` gives", id="through the mean"),
    pytest.param(("dzn = dh * (1 - h**2)", "dzn = dh"), "dzn", "other_gradient", "", id="derivative of tanh"),
    pytest.param(("* zc / 31", "* zc / 32"), "dzc", "factor", "", id="Bessel"),
    pytest.param(("(1 - h**2)", "(1 - zn**2)"), "dzn", None, "", id="unexplained"),
]


@pytest.mark.parametrize(("change", "name", "cause", "hint"), MISTAKES)
def test_a_mistake_is_found_with_its_cause_and_what_follows_from_it_is_told_apart(
    change: tuple[str, str], name: str, cause: str | None, hint: str
) -> None:
    """One mistake in a derivation of eighteen lines: that line is wrong, and none but that in its own right."""
    checks = derived(change)
    found = only(checks)
    assert (found.name, found.cause) == (name, cause)
    assert hint in found.hint
    assert f"`{name}`" in found.message
    downstream = checks.checks[[each.name for each in checks].index(name) + 1 :]
    assert {each for each in checks.wrong if each is not found} <= set(downstream)


def test_the_words_name_the_persons_own_dimensions_lines_and_steps() -> None:
    """Which dimension has that size, where the other use is, which step's derivative is missing."""
    assert "32 is the size of dimension 0 of `logp`" in only(derived(("-1.0 / 32", "-1.0"))).message
    assert "`s` (line 19)" in only(derived(("de = dp / s + ds", "de = dp / s"))).message
    assert "`h = torch.tanh(zn)` is missing" in only(derived(("dzn = dh * (1 - h**2)", "dzn = dh"))).message
    bessel = only(derived(("* zc / 31", "* zc / 32"))).message
    assert "`zc.pow(2)` (line 11) is 32/31 times too small (Bessel's correction" in bessel
    unexplained = only(derived(("(1 - h**2)", "(1 - zn**2)"))).message
    assert re.search(r"in \d+ of 512 elements; at \[\d+, \d+\].*It comes back through `h` \(line 14\)", unexplained)


def test_what_may_follow_from_a_gradient_of_another_shape_says_so() -> None:
    """`dz` was derived from a `dmu` that was not summed: it cannot be told apart, and names it."""
    checks = derived(("dmu = -dzc.sum(0, keepdim=True)", "dmu = -dzc"))
    assert checks["dmu"].cause == "sum"
    assert checks["dmu"].hint == "dmu = dmu.sum(0, keepdim=True)"
    assert checks["dz"].cause == "unconfirmed"
    assert checks["dz"].message == "`dz` is wrong, perhaps only because `dmu` is."


def test_two_mistakes_are_both_found_although_one_follows_from_the_other() -> None:
    """The second is judged by what it was derived from, which is wrong already."""
    checks = derived(
        ("-1.0 / 32", "-1.0"), ("dz = dzc + dmu / 32", "dz = dzc"), ("db2 = dlogits.sum(0)", "db2 = dlogits")
    )
    own = [(each.name, each.cause) for each in checks.wrong if each.cause != "inherited"]
    assert own == [("dlogp", "factor"), ("db2", "sum"), ("dz", "missing_use")]
    assert "`dW1` follows rightly from `dz`, which is wrong" in checks["dW1"].message


def test_what_needs_the_graph_is_not_guessed_where_it_is_used_up() -> None:
    """After the cell's own backward: the mistake itself needs none; what comes after it may follow."""
    checks = derived(("de = dp / s + ds", "de = dp / s"), then="loss.backward()\n")
    assert checks["de"].cause == "missing_use"
    assert {check.cause for check in checks.wrong} == {"missing_use", "inherited", "unconfirmed"}
    assert checks["dn"].message == "`dn` is wrong, perhaps only because `de` is."
    text = str(checks)
    assert text.count("✖") == 1
    assert "perhaps only because of what they start from (mend the others first): `dn`" in text


def test_a_recurrent_nets_derivation_through_time() -> None:
    """A weight is used at every step; `dh` of the loop is no gradient of the last `h`, and nobody said so."""
    source = """torch.manual_seed(0)
x = torch.randn(8, 4)
W = (torch.randn(5, 5) * 0.5).requires_grad_()
U = torch.randn(4, 5, requires_grad=True)
h = torch.zeros(5)
hs = [h]
for t in range(8):
    h = torch.tanh(h @ W + x[t] @ U)
    hs.append(h)
loss = h.pow(2).sum()
with torch.no_grad():
    dW, dU, dh = torch.zeros_like(W), torch.zeros_like(U), 2 * h
    for t in reversed(range(8)):
        da = dh * (1 - hs[t + 1] ** 2)
        dW += torch.outer(hs[t], da)
        dU += torch.outer(x[t], da)
        dh = da @ W.T
"""
    right = check(source)
    assert [(each.name, each.verdict) for each in right] == [("dW", "close"), ("dU", "close"), ("dh", "not_checked")]
    assert "`h` (line 8) was made 8 times" in right["dh"].message
    wrong = check(source.replace("dW +=", "dW ="))
    assert wrong["dW"].cause == "missing_use"
    assert "`W` is used 8 times" in wrong["dW"].message


def test_tensors_that_share_a_row_are_found_by_their_variables() -> None:
    """Three weights of one comprehension: one row, which is named after the last."""
    checks = check(
        "a, b, c = (torch.full((2,), i + 1.0).requires_grad_() for i in range(3))\nloss = (a * b * c).sum()\n"
        "da, db, dc = torch.full((2,), 6.0), torch.full((2,), 3.0), torch.full((2,), 4.0)\n"
    )
    assert [(each.name, each.verdict) for each in checks] == [("da", "exact"), ("db", "exact"), ("dc", "wrong")]
    assert checks["dc"].cause == "factor"


CELL = "w = torch.tensor([[1.0, 2.0], [3.0, 5.0]], requires_grad=True)\nv = torch.tensor([3.0, 5.0])\n"


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("loss = (w * v).sum()\ndw = v.expand(2, 2).T", "transposed"),
        ("loss = (w * v).sum()\ndw = v", "expanded"),
        ("loss = (w * v).sum()\ndw = v * 7.3 + 0 * w.detach()", "factor"),
        ("loss = (w * v).sum()\ndw = (v / 0).expand(2, 2)", "not_finite"),
        ("loss = (w * v).sum()\ndw = torch.ones(3, 7)", "shape"),
        ("loss = w.prod() + w.sum()\nu = torch.ones(2, 2)\ndw = u * 1.0", "missing_use"),
        ("a = w * 2\nb = w * v\nloss = (a * a).sum() + b.sum()\nda = 2 * a\ndw = v.expand(2, 2) * 1.0", "missing_use"),
        ("a = w * 2\nb = w.exp()\nloss = (a * a).sum() + b.sum()\nda = torch.ones(2, 2)", "other_gradient"),
        ("loss = (w * w).sum()\ndw = w.detach() * 1.0", "missing_use"),
        ("m = w.mean(0, keepdim=True)\nloss = ((w - m) * v).pow(2).sum()\ndm = -2 * ((w - m) * v * v).detach()", "sum"),
        ("w.grad = torch.ones(2, 2)\nloss = (w * v).sum()\ndw = v.expand(2, 2)", "accumulated"),
    ],
)
def test_a_cause_of_a_small_cell(source: str, cause: str) -> None:
    """Each in the smallest cell that has it."""
    assert only(check(CELL + source)).cause == cause


def test_a_single_number_is_not_explained_by_chance() -> None:
    """Of one element everything is a multiple: only simple factors are named."""
    assert only(check("w = torch.tensor(3.0, requires_grad=True)\nloss = w * w\ndw = 12.0")).cause == "factor"
    assert only(check("w = torch.tensor(3.0, requires_grad=True)\nloss = w * w\ndw = 7.7")).cause is None


# ---- which belongs to which


def test_names_are_read_as_people_write_them() -> None:
    """By five patterns, and by the name of the root."""
    names = ("dh", "grad_h", "h_grad", "d_h", "dL_dh", "dloss_dh", "dlossdh")
    assert all("h" in subjects(name, PATTERNS, "loss") for name in names)
    assert not any("h" in subjects(name, PATTERNS, "loss") for name in ("h", "d", "hd", "delta_h", "gradh"))
    assert derived_names({"db", "b", "dt", "loss"}, PATTERNS) == {"db"}


def test_what_is_no_gradient_is_not_compared() -> None:
    """Step sizes, sizes, data types, text, masks, other tensors of the forward pass, and losses of a GAN."""
    checks = check(
        "x = torch.ones(3)\nt = torch.ones(3, requires_grad=True)\nmodel = torch.ones(2, requires_grad=True)\n"
        "dt = 0.1\nd_model = 512\ndtype = torch.float32\ndx = 'text'\nreal = t * 2\nd_real = real.mean()\n"
        "dreal = torch.ones(3, dtype=torch.bool)\nloss = d_real + model.sum()\n"
    )
    assert not len(checks)
    assert "no variable is called like the gradient" in str(checks)


def test_numbers_lists_and_arrays_can_be_gradients(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a tensor with one element, of pairs that are asked for, and of arrays; whole numbers are numbers."""
    numpy = pytest.importorskip("numpy")
    source = "a = torch.tensor(2.0, requires_grad=True)\nw = torch.tensor([1.0, 2.0], requires_grad=True)\n"
    source += "loss = a * 3 + (w * 4).sum()\nda = 3\nmine = [4, 4]\n"
    checks = check(
        source, {"mine": "w", "grads['w']": "w"}, grads={"w": torch.tensor([4, 4])}, dw=numpy.array([4.0, 4])
    )
    assert [(each.name, each.verdict) for each in checks] == [
        ("dw", "exact"),
        ("da", "exact"),
        ("mine", "exact"),
        ("grads['w']", "exact"),
    ]
    assert not capsys.readouterr().out


def test_patterns_are_configurable_and_none_leaves_only_the_pairs() -> None:
    """`{}_bar`, and an empty list."""
    report, namespace = run_traced(
        "w = torch.ones(2, requires_grad=True)\nloss = w.sum()\nw_bar = torch.ones(2)\ndw = 1"
    )
    assert [each.name for each in report.check(namespace=namespace, patterns=["{}_bar"])] == ["w_bar"]
    assert [each.name for each in report.check({"w_bar": "w"}, namespace=namespace, patterns=[])] == ["w_bar"]
    with pytest.raises(ValueError, match="stands for the tensor's name"):
        report.check(namespace=namespace, patterns=["bar"])
    with pytest.raises(ValueError, match="stands for the tensor's name"):
        checked_patterns("{}")


def test_what_was_asked_for_and_cannot_be_compared_is_said_with_near_misses() -> None:
    """An unknown variable, an unknown tensor, a tensor without gradient, one that is gone, and no number at all."""
    source = "w = torch.ones(2, requires_grad=True)\nx = torch.ones(2)\n"
    source += "def f():\n    inner = w * 2\n    return inner.sum()\n"
    source += "loss = f() + (x * w).sum()\ndw = torch.ones(2)\ntext = 'no'\n"
    pairs = {"dww": "w", "dw": "ww", "text": "w", "w": "x", "1 / 0": "w", "x": "inner"}
    checks = check(source, pairs)
    assert {each.verdict for each in checks} == {"not_checked"}
    told = {each.name: each.message for each in checks}
    assert "Did you mean `dw`?" in told["dww"]
    assert "did you mean 'w'?" in told["dw"]
    assert "cannot be compared" in told["text"]
    assert "`x` has no gradient to compare with" in told["w"]
    assert "ZeroDivisionError" in told["1 / 0"]
    assert "`inner` (line 4) is gone" in told["x"]
    checks.raise_for_wrong()


def test_a_report_from_json_has_no_tensors_and_says_so() -> None:
    """Data alone cannot be compared with."""
    report, namespace = run_traced("w = torch.ones(2, requires_grad=True)\nloss = w.sum()\ndw = torch.ones(2)")
    (found,) = Report.from_json(report.to_json()).check(namespace=namespace)
    assert found.verdict == "not_checked"
    assert "is gone" in found.message


@pytest.mark.parametrize("text", ["q", "a=", "=b", "a=b,a=c", "a=b,,c"])
def test_pairs_that_are_none_are_refused(text: str) -> None:
    """Before anything runs."""
    with pytest.raises(ValueError, match="pair"):
        parsed_pairs(text)
    assert parsed_pairs("a=b, c = d.e,") == {"a": "b", "c": "d.e"}


# ---- odd tensors


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_rounding_is_close_and_a_thousandth_of_a_small_gradient_is_not(dtype: torch.dtype) -> None:
    """However small the gradient is: the tolerance is relative to its largest element."""
    gradient = torch.tensor([1.0, 0.5, 0.0], dtype=dtype) * 2**-12
    eps = torch.finfo(dtype).eps
    assert difference(gradient.clone(), gradient).verdict == "exact"
    assert difference(gradient * (1 + eps), gradient).verdict in ("exact", "close")
    assert difference(gradient * 1.05, gradient).verdict == "different"


def test_nan_and_infinities_equal_themselves_and_nothing_else() -> None:
    """Where both have them the gradients are equal; where one has, that is the largest difference."""
    nan, inf = float("nan"), float("inf")
    same = torch.tensor([nan, inf, -inf, 1.0])
    assert difference(same.clone(), same).verdict == "exact"
    found = difference(torch.tensor([1.0, nan]), torch.tensor([1.0, 2.0]))
    assert (found.verdict, found.index, found.beyond) == ("different", (1,), 1)
    assert difference(torch.tensor([inf, 1.0]), torch.tensor([-inf, 1.0])).largest == inf


def test_empty_sparse_and_double_gradients() -> None:
    """No elements are equal; a sparse gradient is what it stands for; another dtype is compared in the wider one."""
    checks = check(
        "e = torch.ones(0, 3, requires_grad=True)\nE = torch.nn.Embedding(4, 2, sparse=True)\nw = E.weight\n"
        "v = torch.ones(3, requires_grad=True)\nloss = e.sum() + E(torch.tensor([1, 1])).sum() + (v / 3).sum()\n"
        "de = torch.ones(0, 3)\ndw = torch.tensor([[0, 0], [2, 2], [0, 0], [0, 0]]) * 1.0\n"
        "dv = torch.full((3,), 1 / 3, dtype=torch.float64)\n",
        {"dw": "E.weight"},
    )
    assert [(each.name, each.verdict) for each in checks] == [("de", "exact"), ("dw", "exact"), ("dv", "close")]


def test_the_persons_tensors_gradients_and_random_stream_are_left_alone() -> None:
    """Looking for a cause runs nodes of the graph, but neither hooks nor accumulation; a backward runs afterwards."""
    report, namespace = run_traced(NETWORK + "seen = []\nh.register_hook(seen.append)\ndh = torch.ones(32, 16)\n")
    calls = len(namespace["seen"])
    before = {name: value.grad.clone() for name, value in namespace.items() if getattr(value, "grad", None) is not None}
    state = torch.random.get_rng_state()
    assert len(report.check(namespace=namespace).wrong) == 1
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len(namespace["seen"]) == calls
    for name, gradient in before.items():
        assert torch.equal(namespace[name].grad, gradient)
    namespace["loss"].backward()
    assert torch.equal(namespace["W1"].grad, before["W1"])


def test_a_custom_functions_backward_is_not_run_to_find_a_cause() -> None:
    """It may print or count."""
    source = """ran = []
class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2
    @staticmethod
    def backward(ctx, g):
        ran.append(1)
        return g * 2
w = torch.ones(3, requires_grad=True)
h = Twice.apply(w)
loss = h.sum()
dw = torch.ones(3)
"""
    report, namespace = run_traced(source)
    assert report.check(namespace=namespace)["dw"].verdict == "wrong"
    assert len(namespace["ran"]) == 1


# ---- in the shell


BODY = "import torch\nw = torch.tensor([1.0, 2.0], requires_grad=True)\nb = torch.zeros(1, requires_grad=True)\n"
BODY += "h = w.pow(2) + b\nloss = h.sum()\ndh = torch.ones(2)\ndw = w * dh\ndb = dh.sum(0, keepdim=True) * w[:1]"


def test_the_magic_shows_the_checks_above_the_report(shell: Session) -> None:
    """`dw` lacks a factor. `db` has one element and comes last: it is no loss, and backward starts from `loss`."""
    out = shell.run("%%gradtrace --check\n" + BODY).stdout
    assert out.index("check  3 gradients: 2 exact, 1 wrong") < out.index("backward from loss = 5.0")
    assert "✖ `dw` is 2 times too small." in out
    assert "→ dw = dw * 2" in out


def test_pairs_stand_behind_the_option_with_or_without_commas(shell: Session) -> None:
    """`mine` and `own`; the line magic's statement comes behind them."""
    shell.run("import torch\nw = torch.ones(2, requires_grad=True)\nmine = torch.ones(2) * 3\nown = -mine")
    for pairs in ("mine=w own=w", "mine=w,own=w", '"mine=w" own=w'):
        out = shell.run(f"%gradtrace --check {pairs} -b loss loss = (w * 3).sum()").stdout
        assert "check  2 gradients: 1 exact, 1 wrong" in out
        assert "`own` has the wrong sign" in out


INSIDE = """import torch
w = torch.full((4, 4), 0.1, requires_grad=True)
def layers(x):
    saved = torch.tanh(x @ w)
    return saved @ w
loss = layers(w).sum()
dsaved = torch.ones(4, 4) @ w.detach().T
"""


@pytest.mark.parametrize("backward", ["", "loss.backward(retain_graph=True)\n"])
def test_what_is_derived_for_a_variable_of_a_function_that_has_ended_is_compared(shell: Session, backward: str) -> None:
    """Only the graph holds `saved`, which gets no `.grad` where nobody checks it."""
    assert "check  1 gradient: 1 exact" in shell.run("%%gradtrace --check\n" + INSIDE + backward).stdout
    if references_of_ours() is not None:
        report, namespace = run_traced(INSIDE + backward)
        (unknown,) = report.check(namespace=namespace)
        assert unknown.verdict == "not_checked"
        assert "or with `%%gradtrace --check` where only the graph does" in unknown.message


def test_options_that_cannot_be_are_told_before_the_cell_runs(shell: Session) -> None:
    """No pair, twice the same name, and with `-q`."""
    for line, told in (
        ("--check=q", "'q' is no pair such as dh=h"),
        ("--check a=b a=c", "'a' is paired twice"),
        ("--check -q", "--check cannot go with it"),
        ("--check --check", "more than once"),
    ):
        ran = shell.run(f"%%gradtrace {line}\nran = 1")
        assert told in ran.error
        assert "ran" not in shell.shell.user_ns


def test_strict_fails_a_cell_whose_gradients_are_wrong(shell: Session) -> None:
    """Below its report; a cell whose gradients are right passes."""
    ran = shell.run("%%gradtrace --check --strict\n" + BODY)
    assert ran.error.startswith("FindingsError: ✖ dw is 2 times too small. [wrong_gradient]")
    assert "backward from loss" in ran.stdout
    assert not shell.run(
        "%%gradtrace --check --strict\n" + BODY.replace("w * dh", "2 * w * dh").replace(" * w[:1]", "")
    ).error


def test_a_cell_that_fails_has_nothing_checked(shell: Session) -> None:
    """Its own error, once, and the report of what it had made."""
    ran = shell.run("%%gradtrace --check\n" + BODY + "\n1 / 0")
    assert ran.error == "ZeroDivisionError: division by zero"
    assert "check  " not in ran.stdout


def test_other_patterns_are_a_default_of_the_session(shell: Session) -> None:
    """`%gradtrace_config patterns=[...]`, and back."""
    assert shell.run("%gradtrace_config patterns=['{}_bar']").stdout == "patterns=['{}_bar']\n"
    out = shell.run("%%gradtrace --check\n" + BODY.replace("dw =", "w_bar =")).stdout
    assert "check  1 gradient: 1 wrong" in out
    assert "no pattern" in shell.run("%gradtrace_config patterns=['bar']").error
    shell.run("%gradtrace_config reset")


def test_a_later_cell_checks_with_what_is_there_then(shell: Session) -> None:
    """`report.check()` looks the variables of the cell up that calls it."""
    shell.run("%%gradtrace -o report\n" + BODY.split("dh =")[0])
    assert shell.run("dh = torch.ones(2)\nreport.check()['dh'].verdict").result == "'exact'"
    bundle = shell.shell.ev("report.check()._repr_mimebundle_()")
    assert "gradient of" in bundle["text/html"]
    assert "1 exact" in bundle["text/plain"]


# ---- what it looks like


@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_text_fits_its_width(width: int) -> None:
    """Mistake first, then what follows, then the table."""
    lines = render_text(derived(("-1.0 / 32", "-1.0")), width).split("\n")
    assert max(map(len, lines)) <= width
    assert lines[1].startswith("✖ `dlogp` is 32 times too large")
    assert any(line.startswith("dlogp ") and "wrong" in line for line in lines)
    assert render_text(derived(("-1.0 / 32", "-1.0")), width, ascii_only=True).isascii()


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS.keys())
def test_hostile_names_and_messages_are_only_text(payload: str) -> None:
    """In HTML every one is escaped; in a terminal no control character is left."""
    hostile = GradientCheck(
        name=payload, label=payload, row=0, verdict="wrong", index=(0,), message=f"`{payload}` {payload}", hint=payload
    )
    checks = GradientChecks(checks=(hostile, hostile))
    html = render_html(checks)
    assert "<script" not in html
    assert "<img" not in html
    text = render_text(checks, 100)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    with pytest.raises(FindingsError):
        checks.raise_for_wrong()


def test_readmes_example_prints_what_its_comment_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run as it stands there."""
    source = readme_example("check")
    script = tmp_path / "example.py"
    script.write_text(source, encoding="utf-8")
    exec(compile(source, str(script), "exec"), {"__name__": "__main__"})
    out = capsys.readouterr().out
    assert "dh exact 0.0 None\n" in out
    assert re.search(r"^dw wrong 1\.0 factor$", out, re.MULTILINE)


def test_many_checks_are_shown_bounded() -> None:
    """Two hundred of them; the rest is counted."""
    each = GradientCheck(name="dh", label="h", verdict="exact")
    assert "300 more" in render_text(GradientChecks(checks=(each,) * 500), 100)
    assert len(render_html(GradientChecks(checks=(each,) * 500))) < 300_000


def test_checking_an_empty_report_finds_nothing() -> None:
    """Nothing was traced."""
    assert not len(checked(Report(), {"dh": torch.ones(2)}, {}, PATTERNS))


@pytest.mark.parametrize("width", [60, 100])
def test_the_text_is_as_it_was(width: int, golden: Callable[[str, str], None]) -> None:
    """Golden files of both kinds of checks; ``pytest --refresh-golden`` writes them anew."""
    golden(f"checks_{width}.txt", render_text(sample_reports.checks(), width))
    golden(f"functions_{width}.txt", functions_text(sample_reports.function_checks(), width))

"""`python -m gradmagic script.py` beside `python script.py`: output, errors and exit codes of real processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

import gradmagic
from gradmagic.command import DECLARED_HERE
from gradmagic.delivery import FORMATS
from gradmagic.settings import DECLARED

pytestmark = pytest.mark.real
ROOT = Path(gradmagic.__file__).parent.parent
CHECKOUT = Path(__file__).parent.parent
LEARN = """
import torch
w = torch.tensor([1.0, 2.0], requires_grad=True)
h = w * 3
loss = h.pow(2).sum()
"""
NO_TORCH = "gradtrace: no tensor was made or used here: the script did not import torch."
ABOUT_MAIN = """
import __main__, sys
print(sorted(vars(__main__)), __name__, __file__, __spec__ and __spec__.name, __package__, __doc__)
print(type(__loader__).__name__, __cached__, sys.argv, sys.path[:2], __builtins__, sys.modules["__main__"] is __main__)
"""


class Run(NamedTuple):
    """How a process ended."""

    out: str
    err: str
    code: int


def python(folder: Path, *words: str, stdin: str = "", **environment: str) -> Run:
    """Run Python in a folder, with the gradmagic that is tested."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **environment},
    )
    return Run(done.stdout, done.stderr, done.returncode)


def write(folder: Path, **files: str) -> None:
    """Files by their names, where `__in__` stands for a slash; they end with .py."""
    for name, text in files.items():
        file = folder / f"{name.replace('__in__', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def assert_same(folder: Path, *words: str, stdin: str = "") -> Run:
    """Traced with -q, a program gives what it gives without."""
    plain = python(folder, *words, stdin=stdin)
    traced = python(folder, "-m", "gradmagic", "-q", *words, stdin=stdin)
    assert traced == plain
    return plain


@pytest.mark.parametrize("words", [("s.py",), ("./s.py", "--epochs", "1", "-q", "--", "-b")])
def test_a_script_finds_itself_as_under_python(tmp_path: Path, words: tuple[str, ...]) -> None:
    """`__main__` and its attributes, argv with dashes, the first folder that is searched."""
    write(tmp_path, s=ABOUT_MAIN)
    assert "__main__" in assert_same(tmp_path, *words).out


def test_a_script_behind_a_link_finds_its_neighbours(tmp_path: Path) -> None:
    """The folder of the real file is searched, as Python does."""
    write(tmp_path, deep__in__s="import near", deep__in__near="print('found', __name__)")
    (tmp_path / "s.py").symlink_to(tmp_path / "deep" / "s.py")
    assert assert_same(tmp_path, "s.py").out == "found near\n"


def test_a_module_with_relative_imports_runs(tmp_path: Path) -> None:
    """-m for a module in a package, and for a package with a `__main__.py`."""
    write(tmp_path, p__in____init__="", p__in__a="from .b import x\nprint(x)" + ABOUT_MAIN, p__in__b="x = 5")
    write(tmp_path, p__in____main__="from . import b\nprint(b.x, __package__)")
    assert assert_same(tmp_path, "-m", "p.a", "--flag").out.startswith("5\n")
    assert assert_same(tmp_path, "-m", "p").out == "5 p\n"


def test_a_folder_and_a_zip_file_run(tmp_path: Path) -> None:
    """Each holds a `__main__.py`; one that holds none is refused in Python's words."""
    write(tmp_path, app__in____main__="import other\n" + ABOUT_MAIN, app__in__other="print('other')", bare__in__x="")
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        archive.write(tmp_path / "app" / "__main__.py", "__main__.py")
        archive.write(tmp_path / "app" / "other.py", "other.py")
    assert assert_same(tmp_path, "app").out.startswith("other\n")
    assert assert_same(tmp_path, "app.zip").out.startswith("other\n")
    assert "can't find '__main__' module" in assert_same(tmp_path, "bare").err


@pytest.mark.parametrize(
    ("text", "code", "error"),
    [
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('bye')", 1, "bye\n"),
        ("import sys; sys.exit(None)", 0, ""),
        ("import threading, sys; t = threading.Thread(target=sys.exit, args=(4,)); t.start(); t.join()", 0, ""),
        ("import atexit; atexit.register(print, 'at exit'); print('first')", 0, ""),
        ("def f():\n  1 / 0\ntry:\n  f()\nexcept ArithmeticError as e:\n  raise KeyError('k') from e", 1, "KeyError"),
        ("x = (1,\ndef f(", 1, "SyntaxError"),
        ("def f():\n  x\n y", 1, "IndentationError"),
        ("# coding: latin-1\nprint('ok')", 0, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -2, "KeyboardInterrupt"),
        ("import warnings; warnings.warn('careful', DeprecationWarning)", 0, "careful"),
        ("import sys; sys.excepthook = lambda k, e, t: print('mine', e, t.tb_lineno, t.tb_next)\n1 / 0", 1, ""),
        ("print(input() + input())", 0, ""),
        ("raise ExceptionGroup('two', [ValueError(1), KeyError(2)])", 1, "KeyError"),
    ],
)  # fmt: skip
def test_a_program_ends_as_under_python(tmp_path: Path, text: str, code: int, error: str) -> None:
    """Exit codes, texts, tracebacks, Ctrl-C, threads, atexit, warnings, stdin, and a hook of its own."""
    write(tmp_path, s=text)
    plain = assert_same(tmp_path, "s.py", stdin="a\nb\n")
    assert plain.code == code
    assert error in plain.err


@pytest.mark.parametrize("words", [("none.py",), ("-m", "none"), ("-m", "none.at.all"), ("-m", "json")])
def test_what_is_not_there_is_refused_in_pythons_words(tmp_path: Path, words: tuple[str, ...]) -> None:
    """A missing file has the code 2, a missing module 1."""
    assert assert_same(tmp_path, *words).code == (2 if len(words) == 1 else 1)


def test_a_package_that_fails_on_import_shows_its_traceback(tmp_path: Path) -> None:
    """Its frames are there, and none of gradmagic's."""
    write(tmp_path, p__in____init__="1 / 0", p__in__a="")
    traced = python(tmp_path, "-m", "gradmagic", "-q", "-m", "p.a")
    assert traced.code == 1
    assert "ZeroDivisionError" in traced.err
    assert "p/__init__.py" in traced.err
    assert str(ROOT / "gradmagic") not in traced.err


def test_a_failing_torch_script_has_its_traceback_and_its_report(tmp_path: Path) -> None:
    """The traceback through a Python function of PyTorch is Python's; the report of what was made stands above it."""
    write(tmp_path, s=LEARN + "def f(x):\n    return torch.nn.functional.batch_norm(x, None, None)\nf(h)\n")
    plain = assert_same(tmp_path, "s.py")
    assert plain.code == 1
    traced = python(tmp_path, "-m", "gradmagic", "s.py")
    assert traced.err.endswith(plain.err)
    report = traced.err.removesuffix(plain.err)
    assert "The script stopped with an error" in report
    assert " loss " in report


def test_the_report_speaks_of_the_scripts_own_lines_and_names(tmp_path: Path) -> None:
    """Gradients as plain PyTorch has them; stdout is the script's alone; the code is the script's."""
    write(tmp_path, s=LEARN + "print(loss.item())\n")
    traced = python(tmp_path, "-m", "gradmagic", "--json", "r.json", "--html", "r.html", "--csv", "r.csv", "s.py")
    assert traced.out == "45.0\n"
    assert "backward from loss = 45.0 (line 5, run by gradtrace)" in traced.err
    data = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in data["rows"]}
    assert rows["w"]["grad"]["values"] == [18.0, 36.0]
    assert (rows["h"]["location"]["line"], rows["h"]["location"]["own"]) == (4, True)
    assert data["source"] == {"text": LEARN + "print(loss.item())", "line": 1}
    assert "loss" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert (tmp_path / "r.csv").read_text(encoding="utf-8").startswith("line,place,name,")


def test_a_script_that_trains_has_its_own_passes(tmp_path: Path) -> None:
    """Functions, `if __name__ == ...` and `sys.exit(main())`: the script's own backward counts, and it is said so."""
    write(
        tmp_path,
        s="import sys, torch\ndef main():\n    w = torch.ones(2, requires_grad=True)\n    loss = (w * w).sum()\n"
        "    loss.backward()\n    print(w.grad)\nif __name__ == '__main__':\n    sys.exit(main())\n",
    )
    traced = python(tmp_path, "-m", "gradmagic", "s.py")
    assert traced.out == "tensor([2., 2.])\n"
    assert traced.code == 0
    assert "backward from loss = 2.0 (line 5, run by the script)" in traced.err


def test_backward_starts_from_an_expression_of_the_scripts_names(tmp_path: Path) -> None:
    """One that is no number is refused with the command to write."""
    write(tmp_path, s=LEARN)
    assert "backward from h[0] = 3.0 (--backward" in python(tmp_path, "-m", "gradmagic", "-b", "h[0]", "s.py").err
    refused = python(tmp_path, "-m", "gradmagic", "--backward", "h", "s.py").err
    assert "gradtrace --backward 'h.sum()' s.py" in refused
    operation = python(tmp_path, "-m", "gradmagic", "--backward", "h * h", "s.py").err
    assert "gradtrace --backward '(h * h).sum()' s.py" in operation


def test_numbers_and_random_numbers_are_those_of_plain_python(tmp_path: Path) -> None:
    """Training steps, bit for bit."""
    write(
        tmp_path,
        s="import torch\nmodel = torch.nn.Linear(3, 1)\nopt = torch.optim.SGD(model.parameters(), 0.1)\n"
        "for _ in range(3):\n    opt.zero_grad(); model(torch.randn(4, 3)).pow(2).mean().backward(); opt.step()\n"
        "print([p.tolist() for p in model.parameters()], torch.rand(2).tolist())\n",
        seeded="import torch, runpy\ntorch.manual_seed(0)\nexec(open('s.py').read())\n",
    )
    assert_same(tmp_path, "seeded.py")


def test_without_torch_it_is_said_in_a_line_and_torch_is_not_loaded(tmp_path: Path) -> None:
    """Nor is IPython, on which packages decide where they run."""
    write(tmp_path, s="import sys\nprint(sorted({'torch', 'IPython', 'rich'} & set(sys.modules)), len(sys.meta_path))")
    traced = python(tmp_path, "-m", "gradmagic", "s.py")
    assert traced.out.startswith("[]")
    assert traced.err == f"{NO_TORCH}\n"


def test_what_a_script_sets_before_it_imports_torch_counts(tmp_path: Path) -> None:
    """The number of threads is read when PyTorch is loaded; its loader is its own."""
    write(
        tmp_path,
        s="import os\nos.environ['OMP_NUM_THREADS'] = '1'\nimport torch, sys\n"
        "print(torch.get_num_threads(), torch.__loader__, torch.__spec__.loader, len(sys.meta_path))\n"
        "print('IPython' in sys.modules)\n",
    )  # fmt: skip
    plain, traced = (python(tmp_path, *words).out for words in (["s.py"], ["-m", "gradmagic", "-q", "s.py"]))
    assert [line.split(" object at ")[0] for line in traced.splitlines()] == [
        line.split(" object at ")[0] for line in plain.splitlines()
    ]


def test_classes_of_a_script_can_be_pickled_and_sent_to_processes(tmp_path: Path) -> None:
    """`__main__` is the script's module, here and in what multiprocessing starts."""
    write(
        tmp_path,
        s="import multiprocessing, pickle\nfrom dataclasses import dataclass\nimport torch\n@dataclass\nclass Point:\n"
        "    x: int\ndef double(p):\n    return Point(p.x * 2)\nif __name__ == '__main__':\n"
        "    print(pickle.loads(pickle.dumps(Point(1))))\n"
        "    for way in ('spawn', 'fork'):\n        with multiprocessing.get_context(way).Pool(1) as pool:\n"
        "            print(pool.map(double, [Point(2), Point(3)]))\n",
    )
    assert assert_same(tmp_path, "s.py").out.count("Point(x=4), Point(x=6)") == 2


def test_ctrl_c_leaves_a_report_and_ends_by_the_signal(tmp_path: Path) -> None:
    """As Python ends; what was recorded until then is there."""
    write(tmp_path, s=LEARN + "loss.backward()\nimport os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    traced = python(tmp_path, "-m", "gradmagic", "s.py")
    assert traced.code == -2
    assert "backward from loss = 45.0 (line 6, run by the script)" in traced.err
    assert traced.err.endswith("KeyboardInterrupt\n")


def test_torch_that_a_thread_imports_first_is_not_traced_and_it_is_said(tmp_path: Path) -> None:
    """Modes belong to one thread."""
    write(
        tmp_path,
        s="import threading\ndef go():\n    import torch\n    print(torch.ones(1) * 2)\n"
        "t = threading.Thread(target=go)\nt.start()\nt.join()\n",
    )
    traced = python(tmp_path, "-m", "gradmagic", "s.py")
    assert traced.out == "tensor([2.])\n"
    assert "PyTorch was first imported in a thread, so nothing was traced" in traced.err


def test_a_stream_without_unicode_gets_ascii(tmp_path: Path) -> None:
    """And no colours, as it is no terminal."""
    write(tmp_path, s=LEARN)
    report = python(tmp_path, "-m", "gradmagic", "s.py", PYTHONIOENCODING="ascii").err
    assert report.isascii()
    assert "\\u" not in report
    assert "\x1b" not in report


def test_readme_names_every_option_that_is_different() -> None:
    """Those of the magic that scripts lack, and those that only scripts have."""
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## In a script\n")[2].partition("\n## ")[0]
    lacking = {each.flags[0] for each in DECLARED if each not in DECLARED_HERE and each.flags[0] != "-q"}
    found = re.search(r"what a notebook is needed for\s\((.*?)\)", section)
    assert found is not None
    assert set(re.findall(r"`(-[-a-z]+)`", found[1])) == lacking
    assert re.findall(r"`--([a-z]+) FILE`", section) == list(FORMATS)


def test_a_fork_that_runs_to_the_end_has_no_report_of_its_own(tmp_path: Path) -> None:
    """One report, from the process that was asked for it."""
    write(tmp_path, s=LEARN + "import os\npid = os.fork()\nif pid:\n    os.waitpid(pid, 0)\n")
    assert python(tmp_path, "-m", "gradmagic", "s.py").err.count("gradtrace ") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "which script?"),
        (("-m",), "which script?"),
        (("--rows", "0", "s.py"), "--rows must be at least 1, not 0"),
        (("-b", "a +", "s.py"), "'a +' is not an expression"),
        (("--json", "none/r.json", "s.py"), "--json: there is no folder"),
        (("--html", ".", "s.py"), "is a folder; give it the name of a file"),
        (("-",), "a script cannot come from stdin here"),
        (("--live", "s.py"), "unrecognized arguments: --live"),
        (("--back", "x", "s.py"), "unrecognized arguments"),
    ],
)
def test_a_command_that_cannot_be_is_refused_before_the_script_runs(
    tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    """With the code 2, and a sentence."""
    write(tmp_path, s="print('ran')")
    refused = python(tmp_path, "-m", "gradmagic", *words)
    assert (refused.out, refused.code) == ("", 2)
    assert said in refused.err


def test_the_installed_command_is_no_different(tmp_path: Path) -> None:
    """`gradtrace`, as pip writes it: neither its folder nor its frames are seen."""
    command = "import sys\nfrom gradmagic.command import main\nsys.exit(main())\n"
    write(tmp_path, bin__in__gradtrace=command, s=ABOUT_MAIN + "import torch\n1 / 0\n")
    plain, traced = python(tmp_path, "s.py"), python(tmp_path, "bin/gradtrace.py", "-q", "s.py")
    assert traced == plain
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"gradtrace": "gradmagic.command:main"}


def test_help_and_version(tmp_path: Path) -> None:
    """Help speaks of the script."""
    assert python(tmp_path, "-m", "gradmagic", "--version").out == f"gradmagic {gradmagic.__version__}\n"
    told = python(tmp_path, "-m", "gradmagic", "--help").out
    assert "gradtrace [options] script.py [arguments]" in told
    assert "the script's own backward" in told
    assert "cell" not in told

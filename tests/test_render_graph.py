"""The graph of the tensors: its edges, its texts, and what Graphviz makes of them."""

from __future__ import annotations

import base64
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pygraphviz
import pytest
import torch
from IPython.utils.capture import capture_output
from plain import run_traced
from sample_reports import at, constant, gan, hostile, large, rnn, row, stats
from shells import session
from test_hostile import PAYLOADS, poisoned, whole_report
from torch import nn

from gradmagic.records import Finding
from gradmagic.render import graph as drawing
from gradmagic.render.clusters import clustered
from gradmagic.render.graph import TensorGraph
from gradmagic.render.markup import clean
from gradmagic.render.network import GraphEdge, GraphView, graph_view
from gradmagic.report import Report, ReportOptions

EMPTY = Report()


def read(dot: str) -> pygraphviz.AGraph:
    """The text as Graphviz understands it."""
    return pygraphviz.AGraph(string=dot)


def arrows(view: GraphView) -> set[tuple[str, str]]:
    """The edges by the titles of their nodes."""
    titles = {node.key: node.title for node in view.nodes}
    return {(titles[edge.tail], titles[edge.head]) for edge in view.edges}


def edge_of(view: GraphView, tail: str, head: str) -> GraphEdge:
    keys = {node.title: node.key for node in view.nodes}
    return next(edge for edge in view.edges if (edge.tail, edge.head) == (keys[tail], keys[head]))


class TestNodesAndEdges:
    def test_what_was_made_from_what(self) -> None:
        """Every tensor by its own name, or by its code; an edge from each input."""
        report, _ = run_traced(
            "w = torch.ones(2, requires_grad=True)\nx = torch.ones(2)\nh = w * x\nloss = (h + w.exp()).sum()\n"
        )
        assert arrows(graph_view(report)) == {
            ("w", "h"),
            ("x", "h"),
            ("w", "w.exp()"),
            ("h", "h + w.exp()"),
            ("w.exp()", "h + w.exp()"),
            ("h + w.exp()", "loss"),
        }

    def test_an_edge_has_the_norm_that_arrived_at_its_tail(self) -> None:
        """The smallest norm is the thinnest edge, the largest the thickest."""
        report, names = run_traced("w = torch.ones(4, requires_grad=True)\nh = w * 100\nloss = h.sum()\n")
        view = graph_view(report)
        assert edge_of(view, "w", "h").norm == "200.0"
        assert float(names["w"].grad.norm()) == 200
        assert edge_of(view, "w", "h").share == 1.0
        assert (edge_of(view, "h", "loss").share or 0) < 0.5

    def test_where_no_gradient_came_the_edge_is_dead(self) -> None:
        """A detach: dead on this side, alive on the other."""
        report, _ = run_traced("w = torch.ones(2, requires_grad=True)\nh = w.detach() * 2\nloss = (h * w).sum()\n")
        view = graph_view(report)
        assert edge_of(view, "w", "h").share is None
        assert edge_of(view, "w", "h * w").share is not None
        assert edge_of(view, "h", "h * w").share is None

    def test_a_zero_gradient_is_no_gradient_that_flows(self) -> None:
        """The edge is dashed, and the node says zero."""
        report, _ = run_traced("w = torch.ones(2, requires_grad=True)\nh = (w - 5).relu()\nloss = h.sum()\n")
        view = graph_view(report)
        assert edge_of(view, "w", "w - 5").share is None
        assert {node.title: node.state for node in view.nodes}["w"] == "zero"

    def test_a_loop_is_one_node_and_a_way_back(self) -> None:
        """The recurrence leads back to the earlier node, and does not turn the drawing upside down."""
        report, _ = run_traced(
            "w = torch.ones(2, requires_grad=True)\nh = torch.ones(2)\n"
            "for t in range(5):\n    z = h * w\n    h = z.tanh()\nloss = h.sum()\n"
        )
        view = graph_view(report)
        back = [edge for edge in view.edges if edge.is_back]
        assert [arrows(replace(view, edges=(edge,))) for edge in back] == [{("h ×5", "z ×5")}]
        assert 'constraint="false"' in TensorGraph(view).dot

    def test_a_tensor_made_from_itself_says_how_often(self) -> None:
        """`h = h * w` in a loop is an edge from the node to itself."""
        report, _ = run_traced(
            "w = torch.ones(2, requires_grad=True)\nh = w\nfor t in range(5):\n    h = h * w\nloss = h.sum()\n"
        )
        assert edge_of(graph_view(report), "h ×5", "h ×5").times == "×4"

    def test_the_root_is_marked(self) -> None:
        """Also where its name was bound again afterwards."""
        view = graph_view(rnn())
        assert [node.title for node in view.nodes if node.is_root] == ["loss"]

    def test_what_is_not_shown_does_not_break_the_way(self) -> None:
        """Constants without a name are left out; edges go past them."""
        rows = [
            constant("x", 2),
            constant(None, 3, inputs=(0,), expression="x + 1"),
            row("h", 4, inputs=(1,), grad=stats(1.0)),
        ]
        report = Report(rows=rows, root=rows[2])
        assert arrows(graph_view(report)) == {("x", "h")}
        shown = graph_view(report.with_options(ReportOptions(all=True)))
        assert arrows(shown) == {("x", "x + 1"), ("x + 1", "h")}

    def test_what_a_finding_names_has_its_sign(self) -> None:
        """The same sign as in the table."""
        report = replace(rnn(), findings=[Finding(kind="k", severity="error", message="m", rows=(1,), location=at(2))])
        named = [node.title for node in graph_view(report).nodes if node.severity == "error"]
        assert named == [rnn().rows[1].name]

    def test_filter_order_and_limit_of_the_table_do_not_count(self) -> None:
        """A graph without some of its nodes would be another graph."""
        options = ReportOptions(filter="W", sort="norm", rows=1)
        assert graph_view(rnn().with_options(options)) == graph_view(rnn())


@pytest.fixture(scope="module")
def deep() -> Report:
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 6)
    report, _ = run_traced("loss = model(torch.ones(1, 3, 8)).pow(2).mean()\n", model=model)
    return report


class TestModules:
    def test_a_deep_model_is_folded(self, deep: Report) -> None:
        """A node for each layer, in a row."""
        layers = [node.title for node in deep.graph().view.nodes if node.kind == "module"]
        assert layers == [f"model.layers.{i}" for i in range(6)]
        assert ("model.layers.0", "model.layers.1") in arrows(deep.graph().view)

    def test_depth_opens_it(self, deep: Report) -> None:
        """Its parameters stand in the boxes of their modules, under the name they have there."""
        whole = clustered(deep.graph(depth=9).view.nodes)
        (layers,) = whole.inside.values()
        assert layers.label == "model.layers"
        assert sorted(layers.inside) == list("012345")
        attention = layers.inside["0"].inside["self_attn"]
        assert {node.title for node in attention.nodes} >= {"in_proj_weight", "out_proj.bias"}

    def test_every_node_stands_in_one_box(self, deep: Report) -> None:
        """As Graphviz reads it: every row is a node, none is twice."""
        graph = deep.graph(all=True)
        read_back = read(graph.dot)
        assert len(read_back.nodes()) == len(graph.view.nodes) == len(deep.rows)
        assert len(read_back.edges()) == len(graph.view.edges)

    def test_of_many_nodes_those_next_to_the_root_are_drawn(self) -> None:
        """500, and the caption says how many are not."""
        rows = [row(f"h{i}", i + 2, grad=stats(1.0), inputs=(i - 1,) if i else ()) for i in range(700)]
        view = Report(rows=rows, root=rows[-1]).graph(all=True).view
        assert [view.nodes[0].title, view.nodes[-1].title, len(view.nodes)] == ["h200", "h699", 500]
        assert "200 nodes farther from the root left out" in view.caption

    def test_wrong_depth_is_refused(self) -> None:
        """As everywhere."""
        with pytest.raises(ValueError, match="at least 0"):
            rnn().graph(depth=-1)


REPORTS: dict[str, Callable[[], Report]] = {"rnn": rnn, "gan": gan, "large": large, "hostile": hostile, "empty": Report}


class TestDrawing:
    @pytest.mark.parametrize("make", REPORTS.values(), ids=REPORTS)
    def test_graphviz_draws_every_report(self, make: Callable[[], Report]) -> None:
        """A node and an edge for each."""
        graph = make().graph()
        tree = ElementTree.fromstring(graph.svg)  # noqa: S314 - drawn here
        groups = [element.get("class") for element in tree.iter("{http://www.w3.org/2000/svg}g")]
        assert groups.count("node") == len(graph.view.nodes)
        assert groups.count("edge") == len(graph.view.edges)

    def test_pygraphviz_draws_where_there_is_no_dot(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What pip brings is enough."""
        monkeypatch.setattr(drawing.shutil, "which", lambda name: None)
        assert "</svg>" in rnn().graph().svg

    def test_a_program_that_fails_is_told_of(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """With its own words."""
        program = tmp_path / "dot"
        program.write_text("#!/bin/sh\necho it is broken >&2\nexit 1\n")
        program.chmod(0o755)
        monkeypatch.setattr(drawing.shutil, "which", lambda name: str(program))
        with pytest.raises(RuntimeError, match="Graphviz did not draw the graph: it is broken"):
            rnn().graph().svg  # noqa: B018 - the property draws

    def test_a_notebook_gets_an_image_that_holds_no_script(self) -> None:
        """In an untrusted notebook too, where `<svg>` is taken out."""
        bundle = rnn().graph()._repr_mimebundle_()
        found = re.fullmatch(
            r'<img src="data:image/svg\+xml;base64,([^"]+)" alt="[^"<]+" style="[^"]+">', bundle["text/html"]
        )
        assert found is not None
        assert base64.b64decode(found[1]).decode() == rnn().graph().svg

    def test_without_graphviz_jupyterlab_draws_mermaid(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """And the text says what to install."""
        monkeypatch.setattr(drawing.shutil, "which", lambda name: None)
        monkeypatch.setattr(drawing, "find_spec", lambda name: None)
        graph = rnn().graph()
        bundle = graph._repr_mimebundle_()
        assert bundle["text/vnd.mermaid"] == graph.mermaid
        assert 'pip install "gradmagic[graph]"' in bundle["text/plain"]
        assert graph._repr_svg_() is None
        with pytest.raises(ImportError, match="takes Graphviz"):
            graph.svg  # noqa: B018 - the property draws

    def test_saving(self, tmp_path: Path) -> None:
        """By the end of the name; another end is refused, and nothing is written."""
        graph = rnn().graph()
        for end, text in (("svg", graph.svg), ("dot", graph.dot), ("mmd", graph.mermaid)):
            graph.save(str(tmp_path / f"g.{end}"))
            assert (tmp_path / f"g.{end}").read_text(encoding="utf-8") == text
        with pytest.raises(ValueError, match=r"saved as \.svg, \.dot or \.mmd"):
            graph.save(str(tmp_path / "g.png"))
        assert not (tmp_path / "g.png").exists()

    def test_golden_texts(self, golden: Callable[[str, str], None]) -> None:
        """What both languages look like."""
        golden("graph.dot", rnn().graph().dot)
        golden("graph.mmd", rnn().graph().mermaid)


class TestHostile:
    @pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
    def test_dot_holds_the_text_and_nothing_more(self, payload: str) -> None:
        """Graphviz finds the nodes and edges that are there, each with its label as text."""
        report = poisoned(whole_report(), payload)
        graph = report.graph()
        found = read(graph.dot)
        assert len(found.nodes()) == len(graph.view.nodes)
        assert len(found.edges()) == len(graph.view.edges)
        tree = ElementTree.fromstring(graph.svg)  # noqa: S314 - drawn here
        assert {element.tag.rpartition("}")[2] for element in tree.iter()} <= {
            "svg", "g", "title", "text", "path", "polygon", "polyline", "ellipse", "a",
        }  # fmt: skip
        assert not [name for element in tree.iter() for name in element.attrib if name.lower().startswith("on")]
        links = [element.get("{http://www.w3.org/1999/xlink}href") for element in tree.iter()]
        assert not any(links)

    @pytest.mark.parametrize("payload", ["a&lt;b", 'q"q', "back\\slash\\N\\l", "<b>", "é重🔥", "a\nb"])
    def test_a_label_is_drawn_as_it_is(self, payload: str) -> None:
        """No entity, no escape of Graphviz's is read in it."""
        rows = [row(payload, 2, grad=stats(1.0))]
        tree = ElementTree.fromstring(Report(rows=rows).graph().svg)  # noqa: S314 - drawn here
        texts = [element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")]
        assert clean(payload, 40) in texts

    @pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
    def test_mermaid_holds_words_alone(self, payload: str) -> None:
        """Between the quotes of a label stand letters, digits, entity codes and line breaks of ours."""
        text = poisoned(whole_report(), payload).graph().mermaid
        for line in text.split("\n"):
            quoted = re.findall(r'"([^"]*)"', line)
            assert line.count('"') == 2 * len(quoted)
            for label in quoted:
                rest = re.sub(r"<br/>|#\d+;", "", label)
                assert not set(rest) & set("<>&#;`[]{}|\"'\\/$~^%"), line
            assert re.fullmatch(r"[\w .,:;#=+*()\[\]<>/|×·‖▸✖▲●\"-]*", re.sub(r'"[^"]*"', '""', line)), line


class TestMagic:
    def test_the_graph_stands_below_the_report(self) -> None:
        """`--graph`, with the table's own `--depth`."""
        with session() as here, capture_output() as shown:
            here.run("import torch")
            here.shell.run_cell("%%gradtrace --graph\nw = torch.ones(2, requires_grad=True)\nloss = (w * 2).sum()")
        table, graph = [output.data for output in shown.outputs if "text/html" in output.data]
        assert "<table" in table["text/html"]
        assert graph["text/html"].startswith('<img src="data:image/svg+xml;base64,')
        assert graph["text/plain"].startswith("graph of 3 tensors, 2 edges: backward from loss")

    def test_a_drawing_that_fails_costs_nobody_the_table(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The report is there, and one line says what went wrong."""
        monkeypatch.setattr(drawing, "_drawn", lambda dot: (_ for _ in ()).throw(RuntimeError("Graphviz is ill")))
        with session() as here:
            here.run("import torch")
            ran = here.run("%%gradtrace --graph\nw = torch.ones(2, requires_grad=True)\nloss = (w * 2).sum()")
        assert "backward from loss" in ran.stdout
        assert "Graphviz is ill" in ran.stderr
        assert sys.modules["gradmagic"] is not None

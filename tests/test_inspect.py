"""`onnxeqx inspect`: the tree, the summary, and a page on which text of a model stays text."""

import base64
import hashlib
import html.parser
import json
import os
import re
import shutil
import subprocess

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from onnxeqx import inspection, layers
from onnxeqx.cli import app
from onnxeqx.inspection import Part, Tensor
from tests.sample_models import CNN, CONV_HEAD_CNN, ENCODER, sample_model

HOSTILE = "</script><script>alert(1)</script><!--\"'`&\u202e\x1b[31m\x00"

FOLDED = """<ir_version: 8, opset_import: ["": 17]>
g (float[n, 3, 8, 8] x) => (float[n, 4, 6, 6] y, float[n, 4, 4, 4] z)
<float[4, 3, 3, 3] w, float[4] b, float[4, 4, 3, 3] v, float[4] c, float[4] s, float[4] t, float[4] m, float[4] u>
{ [A] h = Conv (x, w, b) [B] z = Conv (h, v, c) [C] y = BatchNormalization (h, s, t, m, u) }"""


@pytest.fixture(scope="module", params=[CNN, CONV_HEAD_CNN, ENCODER])
def inspected(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / f"{request.param}.onnx"
    onnx.save(sample_model(request.param), path)
    return path, inspection.inspect(path)


@pytest.fixture
def encoder_file(tmp_path):
    onnx.save(sample_model(ENCODER), tmp_path / "encoder.onnx")
    return str(tmp_path / "encoder.onnx")


def model_file(tmp_path, text, renamed=None):
    """A model of ONNX text, its declared values random weights, saved; `renamed` maps their names to others."""
    model, names = onnx.parser.parse_model(text), renamed or {}
    generator = np.random.default_rng(0)
    for value in model.graph.value_info:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = generator.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, names.get(value.name, value.name)))
    del model.graph.value_info[:]
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return path


def tensors(part):
    return [tensor for inner in part.walk() for tensor in inner.tensors]


def run(*arguments, columns=None):
    """The command's result, its output a pipe of no width unless `columns` gives one."""
    env = {"NO_COLOR": "1", "COLUMNS": columns and str(columns)}
    return CliRunner(env=env).invoke(app, list(map(str, arguments)))


# The tree.


def test_every_leaf_stands_in_the_tree_once(inspected):
    path, found = inspected
    paths = [tensor.path for tensor in tensors(found.root)]
    assert len(set(paths)) == len(paths)
    stored = onnx.load(path).graph.initializer
    assert {tensor.initializer for tensor in tensors(found.root)} <= {tensor.name for tensor in stored} | {
        name for node in onnx.load(path).graph.node for name in node.output
    }
    assert found.root.parameters == sum(layer.parameters for layer in layers(path))
    assert sum(found.root.numbers.values()) == sum(layer.parameters + layer.buffers for layer in layers(path))


def test_equal_blocks_are_one_line(encoder_file):
    output = run("inspect", encoder_file).stdout
    (line,) = [line for line in output.splitlines() if "layer[0…1]" in line]
    assert re.search(r"2 . \w+ .* 132k each", line)
    assert output.count("query") == 1
    assert "weight (128, 128), bias (128,)" in output
    assert "(batch, seq, 128)" in output


def test_blocks_that_differ_keep_lines_of_their_own(tmp_path):
    onnx.save(sample_model(CNN), tmp_path / "cnn.onnx")
    found = inspection.inspect(tmp_path / "cnn.onnx")
    runs = [line for line in inspection.lines(found.root) if len(line.run.parts) > 1]
    for line in runs:
        shapes = [[tensor.shape for tensor in tensors(part)] for part in line.run.parts]
        assert all(other == shapes[0] for other in shapes)
    hidden = sum(len(tensors(part)) for line in runs for part in line.run.parts[1:])
    shown = sum(len(line.run.first.tensors) for line in inspection.lines(found.root))
    assert shown + hidden == len(tensors(found.root))


def test_names_that_count_up_are_one_line_where_the_parts_are_equal():
    def part(name, width):
        return Part(name, "tensor", "parameter", (Tensor(f"{name}.w", (width,), "float32", "parameter", name),))

    named = [("block_1", 3), ("block_2", 3), ("block_3", 4), ("block_5", 4), ("block_6", 4), ("rest_7", 4), ("rest", 4)]
    root = Part("", "block", "Model", children=tuple(part(*entry) for entry in named))
    labels = [line.label for line in inspection.lines(root)]
    assert labels == ["Model", "block_1…2", "block_3", "block_5…6", "rest_7", "rest"]


def test_depth_limits_the_tree(encoder_file):
    depths = [len(run("inspect", encoder_file, "--depth", depth).stdout.splitlines()) for depth in (0, 1, 2, 99)]
    assert depths == sorted(set(depths))
    assert depths[-1] == len(run("inspect", encoder_file).stdout.splitlines())


def test_the_summary_says_what_the_file_declares(encoder_file):
    output = run("inspect", encoder_file).stdout
    assert "475,907 parameters (float32), 0 numbers in buffers, 512 in constants." in output
    assert "attention_mask: int64[batch, seq]" in output
    assert "Opset 17; exported by pytorch" in output
    assert "BatchNorm" not in output
    assert "Tied" not in output


def test_ties_are_named(tmp_path):
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (int64[n] x) => (float[n, 7] y) <float[7, 4] w> { [A] e = Gather (w, x) [B] t = Transpose (w) [C] y = MatMul (e, t) }"""
    (tie,) = inspection.inspect(model_file(tmp_path, text, {"w": "embedding.weight"})).ties
    assert tie.path == "embedding"
    assert tie.nodes[0] == "A (Gather)"
    assert len(tie.nodes) == 2


# BatchNorm.


@pytest.mark.parametrize(
    ("names", "named", "computed"),
    [
        ({}, (), ()),
        ({"w": "onnx::Conv_12", "b": "onnx::Conv_13"}, (), ("A",)),
        ({"w": "onnx::Conv_12"}, (), ()),
        ({"w": "a.conv.weight", "b": "a.bn.bias", "v": "bnet.weight", "c": "bnet.bias"}, ("A",), ()),
        ({"w": "conv1.weight", "b": "conv1/BatchNorm/bias", "v": "onnx::Conv_1", "c": "onnx::Conv_2"}, ("A",), ("B",)),
    ],
)
def test_folded_batch_norm_is_told_by_what_it_leaves_behind(tmp_path, names, named, computed):
    found = inspection.inspect(model_file(tmp_path, FOLDED, names))
    assert (found.batch_norm.nodes, found.batch_norm.named, found.batch_norm.computed) == (1, named, computed)
    text = " ".join(inspection.summary(found))
    assert ("BatchNorm was folded away: 1 layer (A) carries" in text) == bool(named)
    assert ("BatchNorm was probably folded away: 1 layer" in text) == bool(computed)
    assert ("1 BatchNormalization nodes are still there" in text) == bool(named or computed)


def test_a_scope_that_names_batch_norm_is_evidence(tmp_path):
    path = model_file(tmp_path, FOLDED)
    model = onnx.load(path)
    for key, value in (
        ("name_scopes", "['', 'stem', 'stem.norm', 'batch']"),
        ("class_hierarchy", "['a.Net', 'a.Stem', 'torch.nn.modules.batchnorm.BatchNorm2d', 'aten.batch_norm']"),
    ):
        model.graph.node[1].metadata_props.add(key=f"pkg.torch.onnx.{key}", value=value)
    onnx.save(model, path)
    assert inspection.inspect(path).batch_norm.named == ("B",)


# Columns and formats.


@pytest.mark.parametrize("arguments", [["plugins"], ["ops"], ["inspect"]])
def test_a_pipe_gets_whole_lines(arguments, encoder_file):
    given = [*arguments, encoder_file] if arguments == ["inspect"] else arguments
    wide, narrow = run(*given).stdout, run(*given, columns=80).stdout
    assert "…" not in wide.replace("[0…1]", "")
    assert "…" not in narrow.replace("[0…1]", "")
    assert max(map(len, wide.splitlines())) > 80
    assert max(map(len, wide.splitlines())) < 300
    # Folded, not cut: no character is lost.
    count = {text: sum(character.isalnum() for character in text) for text in (wide, narrow)}
    assert count[wide] == count[narrow]


def test_json_holds_summary_and_tree(encoder_file):
    found = json.loads(run("inspect", encoder_file, "--json").stdout)
    assert found["numbers"] == {"parameter": 475907, "buffer": 0, "constant": 512}
    assert found["inputs"]["input_ids"] == "int64[batch, seq]"
    assert found["model"]["children"][0]["path"] == "mods"


def test_unsupported_operators_are_listed_with_their_nodes(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17, "org.acme" : 1]>
    g (float[2] x) => (float[2] y) { [first] h = Relu (x) [second] y = org.acme.Warp (h) }"""
    path = model_file(tmp_path, text)
    result = run("inspect", path)
    assert result.exit_code == 1
    assert "Not supported by the loaded plugins: org.acme::Warp, in second." in result.stdout
    assert "first" in result.stdout
    listed = run("inspect", path, "--json")
    assert listed.exit_code == 1
    assert json.loads(listed.stdout)["unsupported"] == {"org.acme::Warp": ["second"]}


def test_names_do_not_reach_the_terminal_as_escapes(tmp_path):
    text = '<ir_version: 8, opset_import: ["" : 17, "org.acme" : 1]> g (float[2] x) => (float[2] y) { y = org.acme.Warp (x) }'
    path = model_file(tmp_path, text)
    model = onnx.load(path)
    model.graph.node[0].name, model.producer_name = HOSTILE, HOSTILE
    onnx.save(model, path)
    unsupported = run("inspect", path).stdout
    model.graph.node[0].op_type, model.graph.node[0].domain = "Neg", ""
    onnx.save(model, path)
    for output in (unsupported, run("inspect", path).stdout):
        assert r"\x1b[31m" in output
        assert not {"\x1b", "\u202e", "\x00"} & set(output)


# The page.


class Page(html.parser.HTMLParser):
    """The elements of a page, with the text of its scripts and style."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], {}, ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.open = tag
        self.tags.append(tag)
        self.attributes.append(dict(attrs))

    def handle_endtag(self, tag):
        self.open = ""

    def handle_data(self, data):
        if self.open in ("script", "style"):
            self.texts.setdefault(self.open, []).append(data)


def embedded(text):
    data, _ = Page(text).texts["script"]
    return json.loads(data)


def json_parts(part):
    yield part
    for child in part.get("children", ()):
        yield from json_parts(child)


def test_the_page_holds_every_leaf_once(inspected):
    _, found = inspected
    data = embedded(inspection.page(found))
    paths = [tensor["path"] for part in json_parts(data["root"]) for tensor in part.get("tensors", ())]
    assert sorted(paths) == sorted(tensor.path for tensor in tensors(found.root))
    assert len(set(paths)) == len(paths)
    assert data["source"] == found.source
    for name, (start, end) in data["classes"].items():
        lines = found.source.splitlines()[start:end]
        assert lines[0].startswith(f"class {name}(")
        assert all(line.startswith("    ") or not line for line in lines[1:])


def test_every_item_of_a_diagram_reads_what_stands_before_it(inspected):
    _, found = inspected
    parts = {part.path for part in found.root.walk()}
    nodes = [node for items in found.diagrams.values() for item in items for node in item.nodes]
    assert nodes
    assert len(set(nodes)) == len(nodes)
    for path, items in found.diagrams.items():
        assert path in parts
        for position, item in enumerate(items):
            assert all(read < position for read in item.reads)
            assert item.path in parts if item.kind in ("layer", "block") else not item.path
        assert items[-1].kind == "output"
        assert items[-1].reads


def test_the_page_needs_nothing_from_outside(inspected):
    _, found = inspected
    text = inspection.page(found)
    assert text.isascii()
    assert len(text) < 500_000
    page = Page(text)
    assert page.tags.count("script") == 2
    assert not {"link", "img", "iframe", "base", "object"} & set(page.tags)
    assert not any(
        name in ("src", "href", "style") or name.startswith("on") for names in page.attributes for name in names
    )


def test_the_policy_allows_the_own_script_and_style_only(inspected):
    page = Page(inspection.page(inspected[1]))
    (policy,) = [names["content"] for names in page.attributes if names.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    hashes = {
        tag: f"'sha256-{base64.b64encode(hashlib.sha256(page.texts[tag][-1].encode()).digest()).decode()}'"
        for tag in ("script", "style")
    }
    assert rules["default-src"] == "'none'"
    assert (rules["script-src"], rules["style-src"]) == (hashes["script"], hashes["style"])


def test_hostile_names_stay_text(tmp_path):
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[n, 3] x) => (float[n, 4] y) <float[3, 4] w> { [A] y = MatMul (x, w) }'
    clean = inspection.page(inspection.inspect(model_file(tmp_path, text)))
    path = model_file(tmp_path, text, {"w": HOSTILE})
    model = onnx.load(path)
    model.graph.node[0].name, model.producer_name, model.graph.name = HOSTILE, HOSTILE, HOSTILE
    model.graph.output[0].name = model.graph.node[0].output[0] = HOSTILE + "out"
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = HOSTILE
    onnx.save(model, path)
    page = inspection.page(inspection.inspect(path))
    assert Page(page).tags == Page(clean).tags
    assert "alert(1)</" not in page
    assert "\u202e" not in page
    (tensor,) = [tensor for part in json_parts(embedded(page)["root"]) for tensor in part.get("tensors", ())]
    assert tensor["initializer"] == HOSTILE


def test_the_page_is_written_whole_and_once(encoder_file, tmp_path):
    target = tmp_path / "page.html"
    assert run("inspect", encoder_file, "--html", target).exit_code == 0
    assert target.read_text().startswith("<!doctype html>")
    again = run("inspect", encoder_file, "--html", target)
    assert again.exit_code == 2
    assert "--force" in again.stderr
    assert run("inspect", encoder_file, "--html", target, "--force").exit_code == 0
    assert sorted(os.listdir(tmp_path)) == ["encoder.onnx", "page.html"]


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_script_is_javascript():
    script = str(inspection.__path__[0]) + "/page.js"
    subprocess.run(["node", "--check", script], check=True, capture_output=True)

"""Laying out printed source: the same program, in lines of a width that people read."""

import ast
import random

import pytest

from onnxeqx._convert import convert
from onnxeqx._emit._layout import lay_out, layout
from onnxeqx._read import read
from tests.test_stability import MODELS


def random_expression(generator: random.Random, depth: int) -> ast.expr:
    """Calls, arithmetic, subscripts, tuples and generator expressions, nested at random."""
    name = ast.Name(generator.choice(["x", "a_rather_long_name", "jax.numpy.concatenate"]), ast.Load())
    if depth == 0:
        return generator.choice([name, ast.Constant(generator.randrange(10**6)), ast.Constant("it's")])
    parts = [random_expression(generator, depth - 1) for _ in range(generator.randrange(1, 5))]
    iterator = ast.comprehension(ast.Name("item", ast.Store()), parts[0], [], 0)
    index = parts[0] if generator.random() < 0.5 else ast.Slice(parts[0], parts[-1])
    return generator.choice(
        [
            ast.Call(name, parts, [ast.keyword("axis", parts[0])]),
            ast.Call(name, [ast.GeneratorExp(parts[0], [iterator])], []),
            ast.BinOp(parts[0], generator.choice([ast.Add(), ast.Mult(), ast.Pow(), ast.MatMult()]), parts[-1]),
            ast.UnaryOp(ast.USub(), parts[0]),
            ast.Compare(parts[0], [ast.Lt()], [parts[-1]]),
            ast.Subscript(name, ast.Tuple([index, *parts], ast.Load()), ast.Load()),
            ast.Subscript(ast.Call(name, parts, []), index, ast.Load()),
            ast.Tuple(parts, ast.Load()),
            ast.List(parts, ast.Load()),
            ast.Call(ast.Attribute(parts[0], "reshape", ast.Load()), parts, []),
        ]
    )


@pytest.mark.parametrize("seed", range(60))
def test_random_programs_stay_the_same(seed):
    generator = random.Random(seed)
    for _ in range(10):
        expression = random_expression(generator, generator.randrange(1, 6))
        statement = generator.choice([ast.Return(expression), ast.Assign([ast.Name("y", ast.Store())], expression)])
        definition = ast.FunctionDef(
            "f", ast.arguments([], [], None, [], [], None, []), [statement], [], None, None, type_params=[]
        )
        source = ast.unparse(ast.fix_missing_locations(definition)) + "\n"
        assert ast.dump(ast.parse(lay_out(source))) == ast.dump(ast.parse(source)), source


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_models_fit_the_width(path):
    source = convert(read(path, weightless=True), path.name).source
    assert max(map(len, source.splitlines())) <= 120
    assert layout(source) == source


def test_a_line_that_would_mean_something_else_is_left_as_it_was(monkeypatch):
    monkeypatch.setattr("onnxeqx._emit._layout.lay_out", lambda source: source.replace("+", "-"))
    assert layout("y = a + b\n") == "y = a + b\n"
    monkeypatch.setattr("onnxeqx._emit._layout.lay_out", lambda source: "y = (\n")
    assert layout("y = a + b\n") == "y = a + b\n"

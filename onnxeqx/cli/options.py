"""Arguments and options that several commands take."""

import pathlib
from typing import Annotated

import typer

from .._errors import OnnxeqxError

ModelFile = Annotated[pathlib.Path, typer.Argument(help="An .onnx file.", show_default=False)]
InputShape = Annotated[
    list[str] | None,
    typer.Option(
        help="Replace the declared shape of an input, as name:dim,dim,…; a word frees a dimension: "
        "--input-shape input:batch,3,128,128. May be given several times.",
        show_default="as declared",
    ),
]


def parse_input_shapes(texts: list[str] | None) -> dict[str, tuple[int | str, ...]]:
    """`["input:batch,3,128,128"]` as `{"input": ("batch", 3, 128, 128)}`. Input names may contain colons.

    **Raises:** `OnnxeqxError` if a text is not of this form.
    """
    shapes = {}
    for text in texts or ():
        name, colon, dims = text.rpartition(":")
        parts = [part.strip() for part in dims.split(",")]
        if not colon or not name or not all(parts):
            raise OnnxeqxError(
                f"--input-shape {text!r} is not of the form name:dim,dim,…; for example input:batch,3,128,128."
            )
        shapes[name] = tuple(int(part) if part.lstrip("-").isdecimal() else part for part in parts)
    return shapes

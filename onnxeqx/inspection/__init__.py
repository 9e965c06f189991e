"""What is in a file, for a person: a tree of blocks, a summary, and a page with diagrams. Weights are not loaded."""

from ._inspect import Inspection as Inspection, inspect as inspect
from ._page import page as page
from ._parts import Part as Part, Tensor as Tensor
from ._tree import lines as lines, summary as summary, tree as tree

"""Printing scans: lines that call the members of a tuple in turn become one call of `scan_layers`."""

import ast
import copy
import dataclasses
import re
from collections.abc import Collection, Sequence

from .._names import Path, identifier
from ._expressions import call, literal, name
from ._loops import is_subkey
from ._tuples import unique_names

# Fewer layers compile as fast one by one.
SHORTEST = 4


@dataclasses.dataclass(frozen=True)
class Stack:
    """The last members of a tuple of blocks, from `start` on, printed as one block; `caller` is the block that calls them."""

    caller: Path
    sequence: Path
    start: int
    size: int

    @property
    def path(self) -> Path:
        """The key path of the stacked block: that of the tuple, if all its members are in it."""
        return (*self.sequence, str(self.start)) if self.start else self.sequence

    @property
    def layers(self) -> list[Path]:
        return [(*self.sequence, str(number)) for number in range(self.start, self.size)]


@dataclasses.dataclass(eq=False)
class Scans:
    """Which tuples of blocks are printed as stacked ones.

    A model is printed twice: once to see which members are constructed alike, called in turn, and named nowhere else; and once
    with those stacked.

    **Fields:** `wanted` (whether to look for any), `remat` (an argument of `scan_layers`), `stacks` (by the path of the tuple).
    """

    wanted: bool = False
    remat: bool = False
    stacks: dict[Path, Stack] = dataclasses.field(default_factory=dict)
    _equal_from: dict[Path, int] = dataclasses.field(default_factory=dict)
    _named: dict[Path, dict[Path, None]] = dataclasses.field(default_factory=dict)
    _found: dict[Path, list[dict[Path, Stack]]] = dataclasses.field(default_factory=dict)

    def constructed(self, sequence: Path, start: int) -> None:
        """Notes from which member on a tuple's members are constructed alike."""
        self._equal_from[sequence] = start

    def named(self, block: Path, path: Path) -> None:
        """Notes that the function of a block uses what stands at a path."""
        self._named.setdefault(block, {})[path] = None

    def uses(self, block: Path, paths: Collection[Path]) -> bool:
        """Whether the function of a block uses what stands at one of these paths, or in it."""
        return any(path[: len(wanted)] == wanted for path in self._named.get(block, ()) for wanted in paths)

    def folded(self, block: Path, body: list[ast.stmt], sizes: dict[str, tuple[Path, int]]) -> list[ast.stmt]:
        """The lines of a block with the scans in it, or, where they are still looked for, as they are.

        `sizes` gives the path and the length of each tuple, by the text that names it.
        """
        if not self.wanted:
            return body
        if self.stacks:
            for text, (sequence, _) in sizes.items():
                if sequence in self.stacks and self.stacks[sequence].caller == block:
                    scan = _scan(body, _mentions(body, text), text, self.stacks[sequence], self.remat)
                    assert scan is not None, "it was found when the model was printed without it"
                    body = scan
            return body
        found: dict[Path, Stack] = {}
        for text, (sequence, size) in sizes.items():
            mentions = _mentions(body, text)
            if sum(map(len, mentions)) < SHORTEST:
                continue  # another block calls them
            for start in range(size - SHORTEST + 1):
                stack = Stack(block, sequence, start, size)
                if _scan(body, mentions, text, stack, self.remat) is not None:
                    found[sequence] = stack
                    break
        self._found.setdefault(block, []).append(found)
        return body

    def chosen(self) -> dict[Path, Stack]:
        """After the first printing: the longest runs that every printing of their block has, the outermost first."""
        stacks: dict[Path, Stack] = {}
        for printings in self._found.values():
            for sequence in set.intersection(*map(set, printings)):
                found = [printing[sequence] for printing in printings]
                start = max(self._equal_from.get(sequence, found[0].size), *(stack.start for stack in found))
                stack = dataclasses.replace(found[0], start=start)
                if len(stack.layers) >= SHORTEST and not self._is_named_elsewhere(stack):
                    stacks[sequence] = stack
        stacks = dict(sorted(stacks.items()))
        inside = {layer for stack in stacks.values() for layer in stack.layers}
        return {
            sequence: stack
            for sequence, stack in stacks.items()
            if not any(sequence[:length] in inside for length in range(len(sequence) + 1))
        }

    def _is_named_elsewhere(self, stack: Stack) -> bool:
        """Whether other blocks reach into the layers, as those that share a weight do."""
        layers, length = set(stack.layers), len(stack.sequence) + 1
        return any(
            path[:length] in layers and (user != stack.caller or len(path) > length)
            for user, paths in self._named.items()
            if user[:length] not in layers
            for path in paths
        )


def _scan(
    body: list[ast.stmt], mentions: list[list[str]], text: str, stack: Stack, remat: bool
) -> list[ast.stmt] | None:
    """The lines with the calls of the stacked members made one; `None` if they do more than hand a value on.

    `mentions` are the members that each line names.
    """
    members = {f"{text}[{number}]": None for number in range(stack.start, stack.size)}
    mentions = [[member for member in line if member in members] for line in mentions]
    first = next((i for i, line in enumerate(mentions) if line), None)
    if first is None:
        return None
    lines, after = body[first : first + len(members)], body[first + len(members) :]
    in_turn = mentions[first : first + len(members)] == [[member] for member in members]
    if not in_turn or any(mentions[first + len(members) :]):
        return None
    run = _Run.of(lines, list(members))
    if run is None or run.hidden & _reads(after):
        return None
    stacked = ast.parse(f"{text}[{stack.start}]" if stack.start else text, mode="eval").body
    return [*body[:first], run.statement(stacked, remat), *after]


@dataclasses.dataclass(eq=False)
class _Run:
    """Lines that are equal but for the names in them.

    **Fields:** `initial` (what the first line takes for what the others take from the line before), `target` (what the last
    line calls it), `each` (what differs from line to line, and the argument it becomes), `outputs` (what each line gives
    besides), `body` (of the function), `layer` and `carried` (its arguments), `hidden` (names that the lines give and a scan
    does not).
    """

    initial: str
    target: str
    each: list[tuple[str, ast.expr]]
    outputs: list[list[str]]
    body: ast.expr
    layer: str
    carried: str
    hidden: set[str]

    @classmethod
    def of(cls, lines: Sequence[ast.stmt], members: Sequence[str]) -> "_Run | None":
        """The run that these lines are, if the first result of each is what the next one takes."""
        targets = [_targets(line) for line in lines]
        if any(target is None or len(target) != len(targets[0] or ()) for target in targets):
            return None
        names = [target for target in targets if target is not None]
        expressions = [line.value for line in lines if isinstance(line, ast.Assign)]
        used = {node.id for line in lines for node in ast.walk(line) if isinstance(node, ast.Name)}
        layer, carried = *unique_names(["layer"], used), names[-1][0]
        unified = _Unified(names, members, layer, carried, used)
        body = unified.visit(expressions)
        if carried in unified.around:  # the last line gives its result the name of what no other reads any more
            (carried,) = unique_names(["x"], used)
            unified = _Unified(names, members, layer, carried, used)
            body = unified.visit(expressions)
        outputs = [list(column) for column in zip(*names, strict=True)][1:]
        distinct = all(len(set(column)) == len(column) or set(column) == {"_"} for column in outputs)
        if body is None or len(unified.initial) != 1 or not distinct:
            return None
        kept = {names[-1][0], *(text for column in outputs for text in column)}
        hidden = {target[0] for target in names} - kept
        return cls(unified.initial.pop(), names[-1][0], unified.each, outputs, body, layer, carried, hidden)

    def statement(self, stacked: ast.expr, remat: bool) -> ast.stmt:
        arguments = [self.layer, self.carried, *(argument for argument, _ in self.each)]
        function = ast.Lambda(
            ast.arguments([], [ast.arg(argument) for argument in arguments], None, [], [], None, []), self.body
        )
        value = call(
            name("scan_layers"),
            function,
            stacked,
            name(self.initial),
            *(expression for _, expression in self.each),
            **({"remat": literal(True)} if remat else {}),
        )
        target: ast.expr = ast.Name(self.target, ast.Store())
        if self.outputs:
            target = ast.Tuple([target, *(_unpacked(column) for column in self.outputs)], ast.Store())
        return ast.Assign([target], value, lineno=0)


class _Unified:
    """Finds the one expression that several are instances of. What differs becomes an argument."""

    def __init__(
        self, targets: list[list[str]], members: Sequence[str], layer: str, carried: str, used: set[str]
    ) -> None:
        self.targets, self.members, self.layer, self.carried = targets, members, layer, carried
        self.taken = used | {layer, carried}
        self.initial: set[str] = set()
        self.around: set[str] = set()
        self.each: list[tuple[str, ast.expr]] = []

    def visit(self, nodes: Sequence[ast.expr]) -> ast.expr | None:
        if all(ast.unparse(node) == member for node, member in zip(nodes, self.members, strict=True)):
            return name(self.layer)
        if all(isinstance(node, ast.Name) for node in nodes):
            return self._name([node.id for node in nodes if isinstance(node, ast.Name)])
        if all(is_subkey(node) for node in nodes) and len({ast.dump(node) for node in nodes}) > 1:
            return self._subkey([node for node in nodes if isinstance(node, ast.Call)])
        if len({type(node) for node in nodes}) > 1:
            return None
        return self._fields(nodes)

    def _fields(self, nodes: Sequence[ast.AST]) -> ast.expr | None:
        """Field by field; `None` if something differs that no argument can stand for."""
        found = copy.copy(nodes[0])
        for field, first in ast.iter_fields(nodes[0]):
            values = [getattr(node, field) for node in nodes]
            if isinstance(first, list):
                if len({len(value) for value in values}) > 1:
                    return None
                merged = [self._value(column) for column in zip(*values, strict=True)]
                if any(item is None for item in merged):
                    return None
                setattr(found, field, merged)
            elif any(value is not None for value in values):
                merged_one = self._value(values)
                if merged_one is None:
                    return None
                setattr(found, field, merged_one)
        return found  # pyright: ignore[reportReturnType]

    def _value(self, values: Sequence[object]) -> object:
        if all(isinstance(value, ast.expr) for value in values):
            return self.visit([value for value in values if isinstance(value, ast.expr)])
        if all(isinstance(value, ast.keyword) for value in values):
            return self._fields([value for value in values if isinstance(value, ast.keyword)])
        texts = {ast.dump(value) if isinstance(value, ast.AST) else repr(value) for value in values}
        return values[0] if len(texts) == 1 else None

    def _name(self, names: list[str]) -> ast.expr | None:
        if all(read == target[0] for read, target in zip(names[1:], self.targets, strict=False)):
            self.initial.add(names[0])
            return name(self.carried)
        given = [{text for target in self.targets[:i] for text in target} for i in range(len(names))]
        if any(text in earlier for text, earlier in zip(names, given, strict=True)):
            return None  # something else that an earlier line gives
        if len(set(names)) == 1:
            self.around.add(names[0])
            return name(names[0])
        return self._argument(names[0], ast.Tuple([name(text) for text in names], ast.Load()))

    def _subkey(self, nodes: list[ast.Call]) -> ast.expr | None:
        numbers = [ast.literal_eval(node.args[1]) for node in nodes]
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            return None
        return self._argument(
            "key", call(name("subkeys"), nodes[0].args[0], literal(numbers[0]), literal(len(numbers)))
        )

    def _argument(self, hint: str, expression: ast.expr) -> ast.expr:
        known = next((argument for argument, other in self.each if ast.dump(other) == ast.dump(expression)), None)
        if known is None:
            text = hint if hint == "key" else identifier(re.sub(r"_?\d+(?=_|$)", "", hint)).strip("_") or "given"
            taken = self.taken - {"key"} if hint == "key" else self.taken
            (known,) = unique_names([text], taken)
            self.taken.add(known)
            self.each.append((known, expression))
        return name(known)


def _targets(line: ast.stmt) -> list[str] | None:
    """The names that an assignment gives."""
    if not isinstance(line, ast.Assign):
        return None
    (target,) = line.targets
    elements = target.elts if isinstance(target, ast.Tuple) else [target]
    names = [element.id for element in elements if isinstance(element, ast.Name)]
    return names if len(names) == len(elements) else None


def _unpacked(names: list[str]) -> ast.expr:
    if set(names) == {"_"}:
        return ast.Name("_", ast.Store())
    return ast.Tuple([ast.Name(text, ast.Store()) for text in names], ast.Store())


def _mentions(body: Sequence[ast.stmt], sequence: str) -> list[list[str]]:
    """The members of a sequence that each line names."""
    subscripts = ([node for node in ast.walk(line) if isinstance(node, ast.Subscript)] for line in body)
    texts = ([ast.unparse(node) for node in line] for line in subscripts)
    return [[text for text in line if text.startswith(f"{sequence}[")] for line in texts]


def _reads(lines: Sequence[ast.stmt]) -> set[str]:
    """The names that lines read before they give them themselves."""
    read: set[str] = set()
    given: set[str] = set()
    for line in lines:
        loads = {node.id for node in ast.walk(line) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        read |= loads - given
        given |= set(_targets(line) or ())
    return read

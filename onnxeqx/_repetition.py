"""Blocks without names: where an exporter wrote down no scopes, what repeats in the graph is a block.

A region reaches from a call that merges branches (`Add`, `Concat`) back to the last value through which all of its branches
pass. Regions of equal structure are blocks; blocks that follow one another are a stage: the residual blocks of a ResNet,
the layers of a dense block, the inception modules of GoogLeNet.
"""

import collections
import dataclasses
import re

from ._graph import Call, Graph, Value
from ._symbolic import key

# Smaller regions are lines, not blocks.
_SMALLEST_BLOCK = 5


@dataclasses.dataclass(eq=False)
class _Region:
    """`calls` in topological order; the last one gives the region's result, and `entry` (a call, or `None`) feeds it."""

    calls: list[Call]
    entry: Call | None

    @property
    def last(self) -> Call:
        return self.calls[-1]


def name_repetitions(graph: Graph) -> None:
    """Gives the calls of blocks scopes: `stage1.0.conv2`, `block3.linear`. Layers outside of all blocks have none."""
    trunk = _Trunk(graph)
    regions = _repeated(trunk)
    blocks = _block_names(_stages(regions, trunk)) | _transition_names(regions, trunk)
    layers: dict[tuple[str, ...], list[Call]] = collections.defaultdict(list)
    for call in graph.calls:
        block = blocks.get(call, ())
        call.class_names = {block: "Transition" if block[0].startswith("transition") else "Block"} if block else {}
        if call.lifted is None:
            call.scope = block or (call.op.name.lower(),)
        elif block:
            layers[*block, _word(call.lifted.layer)].append(call)
    for (*block, word), calls in layers.items():
        for number, call in enumerate(calls, 1):
            call.scope = (*block, word if len(calls) == 1 else f"{word}{number}")


def _word(layer: type) -> str:
    """`norm` for `BatchNorm`."""
    return re.findall("[A-Z]+[a-z]*", layer.__name__)[-1].lower()


class _Trunk:
    """The calls that depend on weights, and how they are connected. Masks and positions are made beside the trunk."""

    def __init__(self, graph: Graph) -> None:
        producer = {output: call for call in graph.calls for output in call.outputs}
        self.calls: list[Call] = []
        self.sources: dict[Call, list[Call]] = {}
        self.readers: dict[Call, list[Call]] = collections.defaultdict(list)
        for call in graph.calls:
            sources = [producer[value] for value in call.reads if value in producer and producer[value] in self.sources]
            if sources or call.lifted is not None or any(value.leaf is not None for value in call.reads):
                self.calls.append(call)
                self.sources[call] = list(dict.fromkeys(sources))
        for call in graph.calls:
            for value in dict.fromkeys(call.reads):
                if value in producer:
                    self.readers[producer[value]].append(call)
        self.outputs = {producer[value] for value in graph.outputs if value in producer}
        self.position = {call: position for position, call in enumerate(self.calls)}
        self.dominator: dict[Call, Call | None] = {}
        for call in self.calls:
            self.dominator[call] = self._meeting(self.sources[call])

    def _meeting(self, sources: list[Call]) -> Call | None:
        """The last call through which all ways to the sources lead (Cooper, Harvey and Kennedy, 2001)."""
        meeting: Call | None = sources[0] if sources else None
        for other in sources[1:]:
            while meeting is not other:
                if meeting is None or other is None:
                    return None
                if self.position[meeting] > self.position[other]:
                    meeting = self.dominator[meeting]
                else:
                    other = self.dominator[other]
        return meeting

    def region(self, merge: Call) -> _Region | None:
        """What lies between a merging call and its dominator, if nothing else reads from inside."""
        entry = self.dominator[merge]
        inside: set[Call] = {merge}
        stack = [merge]
        while stack:
            for source in self.sources[stack.pop()]:
                if source is not entry and source not in inside:
                    inside.add(source)
                    stack.append(source)
        closed = all(
            call is merge or (call not in self.outputs and inside.issuperset(self.readers[call])) for call in inside
        )
        return _Region(sorted(inside, key=self.position.__getitem__), entry) if closed and entry is not None else None


def _repeated(trunk: _Trunk) -> list[_Region]:
    """Regions whose structure occurs more than once, the largest first where they overlap, in the order of the graph."""
    merges = [call for call in trunk.calls if len(trunk.sources[call]) > 1]
    regions = [region for merge in merges if (region := trunk.region(merge)) is not None]
    kinds: dict[object, list[_Region]] = collections.defaultdict(list)
    for region in regions:
        if len(region.calls) >= _SMALLEST_BLOCK:
            kinds[_structure(region, trunk)].append(region)
    taken: set[Call] = set()
    chosen: list[list[_Region]] = []
    for found in sorted(kinds.values(), key=lambda found: -len(found[0].calls)):
        free = [region for region in found if taken.isdisjoint(region.calls)]
        if len(free) > 1:
            chosen.append(free)
            taken.update(call for region in free for call in region.calls)
    for found in chosen:
        _grow(found, trunk, taken)
    return sorted((region for found in chosen for region in found), key=lambda region: trunk.position[region.last])


def _structure(region: _Region, trunk: _Trunk) -> object:
    """What equal regions have in common: operators and layers, and how they are connected; not their sizes."""
    numbers: dict[Call | None, int] = {region.entry: 0}
    rows = []
    for call in _depth_first(region, trunk):
        rows.append((_kind(call), tuple(numbers.get(source, -1) for source in trunk.sources[call])))
        numbers[call] = len(numbers)
    return tuple(rows)


def _depth_first(region: _Region, trunk: _Trunk) -> list[Call]:
    inside, order, stack = set(region.calls), {}, [(region.last, False)]
    while stack:
        call, done = stack.pop()
        if done:
            order[call] = None
        elif call in inside and call not in order:
            stack.append((call, True))
            stack += [(source, False) for source in reversed(trunk.sources[call])]
    return list(order)


def _kind(call: Call) -> object:
    return call.op_type if call.lifted is None else call.lifted.layer


def _grow(regions: list[_Region], trunk: _Trunk, taken: set[Call]) -> None:
    """Adds the calls that stand before, and after, every one of the regions."""
    while (before := _all_alike([region.entry for region in regions])) and all(
        call not in taken
        and trunk.readers[call] == _first_readers(region, call, trunk)
        and len(trunk.sources[call]) == 1
        and not _changes_size(call)
        for region, call in zip(regions, before, strict=True)
    ):
        for region, call in zip(regions, before, strict=True):
            region.calls.insert(0, call)
            region.entry = trunk.sources[call][0]
        taken.update(before)
    while (after := _all_alike([_only_reader(region.last, trunk) for region in regions])) and all(
        call not in taken and call.lifted is None and len(trunk.sources[call]) == 1 and not _changes_size(call)
        for call in after
    ):
        for region, call in zip(regions, after, strict=True):
            region.calls.append(call)
        taken.update(after)


def _first_readers(region: _Region, entry: Call, trunk: _Trunk) -> list[Call]:
    return [call for call in trunk.readers[entry] if call in region.calls]


def _only_reader(call: Call, trunk: _Trunk) -> Call | None:
    readers = trunk.readers[call]
    return readers[0] if len(readers) == 1 and call not in trunk.outputs and readers[0] in trunk.sources else None


def _all_alike(calls: list[Call | None]) -> list[Call]:
    """The calls, if there are as many as regions and all of one kind."""
    found = [call for call in dict.fromkeys(calls) if call is not None]
    return found if len(found) == len(calls) and len({_kind(call) for call in found}) == 1 else []


def _changes_size(call: Call) -> bool:
    """Whether it is a pooling or the like: those stand between blocks."""
    first = next((value for value in call.reads if value.leaf is None), None)
    return call.lifted is None and (first is None or _sizes(first) is None or _sizes(first) != _sizes(call.outputs[0]))


def _sizes(value: Value) -> list[object] | None:
    return None if value.shape is None else [key(dim) for dim in value.shape]


def _block_names(stages: list[list[_Region]]) -> dict[Call, tuple[str, ...]]:
    """`stage1.0` for the members of a stage, `block1` for a block that stands alone."""
    names: dict[Call, tuple[str, ...]] = {}
    counts: collections.Counter[str] = collections.Counter()
    for stage in stages:
        kind = "stage" if len(stage) > 1 else "block"
        counts[kind] += 1
        for index, region in enumerate(stage):
            path = (f"{kind}{counts[kind]}", str(index)) if kind == "stage" else (f"{kind}{counts[kind]}",)
            names |= dict.fromkeys(region.calls, path)
    return names


def _transition_names(regions: list[_Region], trunk: _Trunk) -> dict[Call, tuple[str, ...]]:
    """`transition1` for what leads from one block to the next, where that repeats."""
    ends = {region.last for region in regions}
    found: dict[object, list[list[Call]]] = collections.defaultdict(list)
    for region in regions:
        chain, call = [], region.entry
        while call is not None and call not in ends and len(trunk.sources[call]) == 1:
            chain.append(call)
            call = trunk.sources[call][0]
        if call in ends and any(call.lifted is not None for call in chain):
            found[tuple(map(_kind, chain))].append(chain)
    repeated = [chain for chains in found.values() if len(chains) > 1 for chain in chains]
    repeated.sort(key=lambda chain: trunk.position[chain[0]])
    return {call: (f"transition{number}",) for number, chain in enumerate(repeated, 1) for call in chain}


def _stages(regions: list[_Region], trunk: _Trunk) -> list[list[_Region]]:
    """Runs of regions that feed one another, begun anew where the kind of the first one comes back after another kind."""
    ends: dict[Call, list[_Region]] = {}
    stages: list[list[_Region]] = []
    for region in regions:
        stage = ends.pop(region.entry, None) if region.entry is not None else None
        if stage is None or _begins_anew(stage, region, trunk):
            stage = []
            stages.append(stage)
        stage.append(region)
        ends[region.last] = stage
    return stages


def _begins_anew(stage: list[_Region], region: _Region, trunk: _Trunk) -> bool:
    first, last = _structure(stage[0], trunk), _structure(stage[-1], trunk)
    return _structure(region, trunk) == first != last

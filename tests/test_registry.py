"""The registry: every historic version of an operator is covered once, by a function whose signature fits its schema."""

import collections

import onnx
import pytest

import onnxeqx
from onnxeqx._registry import Op, Registry
from onnxeqx.plugins.manager import host

FORMAL = onnx.defs.OpSchema.FormalParameterOption
SCHEMAS = collections.defaultdict(list)
for schema in onnx.defs.get_all_schemas_with_history():
    if not schema.deprecated:
        SCHEMAS[f"{schema.domain}::{schema.name}".removeprefix("::")].append(schema)
NAMES = sorted({entry.full_name for entry in host().registry.ops()})

# Deliberate differences from the schema, by operator and version.
OTHER_ATTRIBUTES = {
    ("Concat", 1): "the schema gives axis no default, its text the default 1",
    ("Split", 1): "its input and its attribute have one name",
}


def test_every_operator_of_the_standard_is_there():
    assert set(SCHEMAS) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_version_is_covered_once(name):
    entries = host().registry.ops(name)
    for schema in SCHEMAS[name]:
        covering = [entry for entry in entries if entry.covers(schema.since_version)]
        assert len(covering) == 1, (name, schema.since_version)


@pytest.mark.parametrize("name", NAMES)
def test_signatures_fit_the_schemas(name):
    for schema in SCHEMAS[name]:
        entry = host().registry.lookup(schema.domain, schema.name, schema.since_version)
        assert entry is not None
        check_inputs(entry, schema)
        if (name, schema.since_version) not in OTHER_ATTRIBUTES:
            check_attributes(entry, schema)


@pytest.mark.parametrize("name", NAMES)
def test_signatures_have_nothing_that_no_schema_has(name):
    for entry in host().registry.ops(name):
        covered = [schema for schema in SCHEMAS[name] if entry.covers(schema.since_version)]
        if covered:  # a version that ONNX has deprecated is not among them
            known = {attribute for schema in covered for attribute in schema.attributes}
            assert set(entry.attributes) <= known | {"n_outputs", "key"} | ({"body"} if entry.cuts_out else set()), (
                name,
                entry.since,
            )
            assert len(entry.inputs) <= max(len(schema.inputs) for schema in covered), (name, entry.since)
            assert len(entry.required_inputs) <= min(schema.min_input for schema in covered), (name, entry.since)


def check_inputs(entry: Op, schema) -> None:
    where = f"{entry.name} at opset {schema.since_version}"
    assert len(entry.inputs) >= len(schema.inputs), where
    for position, formal in enumerate(schema.inputs):
        if formal.option == FORMAL.Single:
            covered = [other for other in SCHEMAS[entry.full_name] if entry.covers(other.since_version)]
            later_optional = any(
                position < len(other.inputs) and other.inputs[position].option == FORMAL.Optional for other in covered
            )
            assert position < len(entry.required_inputs) or entry.variadic or later_optional, (where, formal.name)
        elif formal.option == FORMAL.Optional:
            assert position >= len(entry.required_inputs), (where, formal.name)
        else:
            assert entry.variadic, (where, formal.name)


def check_attributes(entry: Op, schema) -> None:
    known = dict(entry.attributes)
    for name, attribute in schema.attributes.items():
        where = f"{entry.name} at opset {schema.since_version}, attribute {name}"
        assert name in known, where
        if attribute.required:
            assert known[name] is Op.REQUIRED or known[name] is None, where
        elif attribute.default_value.type:
            default = onnx.helper.get_attribute_value(attribute.default_value)
            default = default.decode() if isinstance(default, bytes) else default
            if isinstance(default, list):
                default = tuple(item.decode() if isinstance(item, bytes) else item for item in default)
            given = known[name]
            assert given == pytest.approx(default) if isinstance(default, float) else given == default, (
                where,
                given,
                default,
            )
        else:
            assert known[name] is not Op.REQUIRED, where


@onnxeqx.op("Twice", domain="org.acme", since=2, until=4)
def twice(x):
    return x + x


@onnxeqx.op("Twice", domain="org.acme", since=4)
def twice_4(x):
    return x + x


def test_look_up_takes_the_range_that_holds_the_opset():
    registry = Registry()
    registry.bound_to("acme").add(twice)
    found = registry.lookup("org.acme", "Twice", 3)
    assert found is not None
    assert (found.plugin, found.full_name) == ("acme", "org.acme::Twice")
    assert registry.lookup("org.acme", "Twice", 1) is None
    assert registry.lookup("org.acme", "Twice", 5) is None


def test_overlaps_are_errors_that_name_both_plugins():
    registry = Registry()
    registry.bound_to("first").add(twice)
    with pytest.raises(onnxeqx.PluginError, match=r"'first'.*'second'.*override=True"):
        registry.bound_to("second").add(twice_4)
    registry.bound_to("second").add(twice_4, override=True)
    found = registry.lookup("org.acme", "Twice", 4)
    assert found is not None
    assert found.plugin == "second"


def test_a_function_without_a_mark_is_refused():
    with pytest.raises(onnxeqx.PluginError, match="carries no mark"):
        Registry().add(lambda x: x)


def test_a_mark_that_names_no_input_is_refused():
    with pytest.raises(onnxeqx.PluginError, match="'shape'"):
        onnxeqx.op("Twice", domain="org.acme", host=("shape",))(lambda x: x)


def test_ai_onnx_is_the_default_domain():
    assert host().registry.lookup("ai.onnx", "Relu", 17) is host().registry.lookup("", "Relu", 17)

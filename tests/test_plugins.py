"""Plugins: installed beside onnxeqx, left out, broken, in conflict, and as docs/plugins.md describes them."""

import ast
import importlib
import importlib.metadata
import inspect
import os
import pathlib
import re
import shutil
import site
import subprocess
import sys
import tomllib
import types
import venv

import numpy as np
import onnx
import pytest
import typer
from typer.testing import CliRunner

import onnxeqx.cli
from onnxeqx._convert import convert
from onnxeqx._load import build
from onnxeqx._read import read_proto
from onnxeqx.plugins import hookspecs, manager
from onnxeqx.plugins.manager import Plugin, PluginHost

ROOT = pathlib.Path(__file__).parents[1]
CONTRIBUTED = sorted(path.parent for path in (ROOT / "plugins_contrib").glob("*/pyproject.toml"))
DOCS = (ROOT / "docs" / "plugins.md").read_text()
HOOKS = [function for function in vars(hookspecs).values() if hasattr(function, "onnxeqx_spec")]

NEEDS_PLUGINS = """
<ir_version: 8, opset_import: ["" : 17, "org.onnxeqx.example" : 1, "org.acme" : 3]>
scaled (float[batch, 3] x) => (float[rows, 3] y)
{
    h = org.onnxeqx.example.ScaledTanh<alpha = 1.5, beta = 0.25>(x)
    t = org.onnxeqx.example.ScaledTanh(h)
    y = org.acme.Warp(t)
}
"""
NEEDS_EXAMPLE = NEEDS_PLUGINS.replace("org.acme.Warp(t)", "Concat<axis = 0>(x, t)")

# Run in the fresh environment: the error's text for a model that lacks operators, its outputs otherwise.
LOAD = """
import pathlib, sys
import numpy as np
import onnxeqx

environment, model, x, y = map(pathlib.Path, sys.argv[1:])
assert environment in pathlib.Path(onnxeqx.__file__).parents, onnxeqx.__file__
try:
    np.save(y, onnxeqx.load(model)(np.load(x)))
except onnxeqx.UnsupportedOpsError as error:
    print(error)
"""

ACME = """
import onnxeqx

@onnxeqx.op("Twice", domain="org.acme")
def twice(x):
    return x + x

@onnxeqx.hookimpl
def onnxeqx_register_ops(registry):
    registry.add_module(__name__)
"""
OVERLAPPING = ACME.replace("twice", "double").replace("x + x", "2 * x")


def named(text: str, **names: str) -> onnx.ModelProto:
    """A model in ONNX text, with names for the nodes that give the named values."""
    model = onnx.parser.parse_model(text)
    for node in model.graph.node:
        node.name = names.get(node.output[0], "")
    return model


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a distribution with one module and one entry point on the path."""
    modules = []

    def installed(name: str, source: str, *, version: str = "1.2") -> types.SimpleNamespace:
        folder, module, distribution = tmp_path / f"installed_{name}", f"onnxeqx_{name}", f"onnxeqx-{name}"
        information = folder / f"{module}-{version}.dist-info"
        information.mkdir(parents=True)
        (folder / f"{module}.py").write_text(source)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (information / "entry_points.txt").write_text(f"[onnxeqx]\n{name} = {module}\n")
        monkeypatch.syspath_prepend(folder)
        modules.append(module)
        return types.SimpleNamespace(name=name, module=module, distribution=distribution, folder=folder)

    yield installed
    for module in modules:
        sys.modules.pop(module, None)


def from_environment(monkeypatch, **variables: str) -> PluginHost:
    """A new host as the process-wide one is made."""
    for name in ("ONNXEQX_DISABLE_PLUGINS", "ONNXEQX_PLUGIN_AUTOLOAD"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return manager.host.__wrapped__()


def names_of(host: PluginHost) -> set[str]:
    return {plugin.name for plugin in host.plugins}


def register(host: PluginHost, name: str, source: str, monkeypatch) -> types.ModuleType:
    """Registers the source as a plugin of this name."""
    module = types.ModuleType(f"onnxeqx_{name}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source, module.__name__, "exec"), vars(module))
    host.register(module, Plugin(name, f"onnxeqx-{name}", "1.2", module.__name__))
    return module


def state(host: PluginHost) -> tuple:
    """What is registered, and in which order."""
    hooks = {
        name: [impl.plugin_name for impl in getattr(host.pluggy.hook, name).get_hookimpls()] for name in hook_names()
    }
    registry = host.registry
    return registry.ops(), registry.lift_rules(), registry.rewrite_rules(), list(host.plugins), hooks


def hook_names() -> list[str]:
    return [hook.__name__ for hook in HOOKS]


# --- Installed distributions ---------------------------------------------------------------------------------------


class FreshEnvironment:
    """A virtual environment in which wheels are installed beside the dependencies of the running interpreter."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder.resolve()
        venv.create(self.folder, with_pip=False)
        scripts = self.folder / ("Scripts" if os.name == "nt" else "bin")
        self.python, self.onnxeqx = scripts / "python", scripts / "onnxeqx"
        # Directories of a .pth file come last on the path, and .pth files inside them (editable installs) are not read.
        dependencies = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
        self._site_packages = next(self.folder.rglob("site-packages"))
        self._beside = self._site_packages / "dependencies.pth"
        self._beside.write_text("\n".join(dependencies))

    def install(self, wheel: pathlib.Path) -> None:
        # pip must see this environment alone: it would otherwise take an onnxeqx among the dependencies for installed.
        beside = self._beside.read_text()
        self._beside.unlink()
        run(
            sys.executable, "-m", "pip", "--python", self.python, "install", "--quiet", "--no-deps", "--no-index", wheel
        )
        self._beside.write_text(beside)


def run(*command: object, folder: pathlib.Path | None = None) -> str:
    """Standard output of a command that must succeed, away from the development tree."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("ONNXEQX_", "PYTHON", "PYTEST_"))
    }
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder or pathlib.Path(sys.prefix),
        env=environment | {"COLUMNS": "250", "NO_COLOR": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def built_wheel(source: pathlib.Path, scratch: pathlib.Path) -> pathlib.Path:
    """The wheel of a distribution, built from a copy of its source."""
    copy, wheels = scratch / "source", scratch / "wheels"
    ignored = shutil.ignore_patterns(
        "__pycache__", ".*", "tests", "plugins_contrib", "examples", "benchmarks", "dist", "runs"
    )
    shutil.copytree(source, copy, ignore=ignored)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", wheels, copy)
    (wheel,) = wheels.glob("*.whl")
    return wheel


def test_a_plugin_installs_beside_onnxeqx_and_adds_its_operator(tmp_path):
    if any(entry.name == "example" for entry in importlib.metadata.entry_points(group="onnxeqx")):
        pytest.skip("onnxeqx-example is installed in this environment; uninstall it to test that it is missing")
    environment = FreshEnvironment(tmp_path / "environment")
    environment.install(built_wheel(ROOT, tmp_path / "onnxeqx"))
    script, x_file, y_file = tmp_path / "load.py", tmp_path / "x.npy", tmp_path / "y.npy"
    script.write_text(LOAD)
    x = np.linspace(-4, 4, 6, dtype=np.float32).reshape(2, 3)
    np.save(x_file, x)
    both, one = tmp_path / "both.onnx", tmp_path / "one.onnx"
    onnx.save(named(NEEDS_PLUGINS, h="first", t="second", y="third"), both)
    onnx.save(named(NEEDS_EXAMPLE), one)

    def load(model: pathlib.Path) -> str:
        return run(environment.python, "-I", script, environment.folder, model, x_file, y_file)

    error = load(both)
    for part in ("org.onnxeqx.example::ScaledTanh", "'first'", "'second'", "org.acme::Warp at opset 3", "'third'"):
        assert part in error
    for part in ("@onnxeqx.op(", "@onnxeqx.hookimpl", "def onnxeqx_register_ops(registry)", "onnxeqx plugins"):
        assert part in error
    assert not y_file.exists()

    example = ROOT / "plugins_contrib" / "onnxeqx-example"
    environment.install(built_wheel(example, tmp_path / "example"))
    assert load(one) == ""
    np.testing.assert_allclose(np.load(y_file), np.concatenate([x, np.tanh(1.5 * np.tanh(0.25 * x))]), rtol=1e-5)
    assert "ScaledTanh" not in (error := load(both))
    assert "org.acme::Warp" in error

    listed = run(environment.onnxeqx, "plugins")
    assert re.search(r"example +onnxeqx-example +0\.1\.0 +onnxeqx_example +1\b", listed)
    assert "onnxeqx_example.py:" in run(environment.onnxeqx, "ops", "ScaledTanh")

    own_tests = shutil.copytree(example / "tests", tmp_path / "own_tests")
    assert "2 passed" in run(
        environment.python,
        "-I",
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        own_tests,
        own_tests,
        folder=tmp_path,
    )


# --- The rule of plugins_contrib -----------------------------------------------------------------------------------


def test_there_are_contributed_plugins():
    assert CONTRIBUTED


@pytest.mark.parametrize("folder", CONTRIBUTED, ids=lambda folder: folder.name)
def test_a_contributed_plugin_keeps_the_rule(folder, monkeypatch):
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == folder.name
    assert folder.name.startswith("onnxeqx-")
    assert project["authors"]
    assert project["license"]
    assert any(re.match(r"onnxeqx\s*>=", dependency) for dependency in project["dependencies"])
    assert (folder / "README.md").read_text().strip()
    assert list((folder / "tests").glob("test_*.py"))
    for path in folder.rglob("*.py"):
        for imported in imported_names(ast.parse(path.read_text())):
            assert not re.match(r"onnxeqx\.(.*\.)?_", imported), f"{path.name} imports {imported}"

    ((name, module),) = project["entry-points"]["onnxeqx"].items()
    monkeypatch.syspath_prepend(folder)
    host = PluginHost(autoload=False)
    builtin = {entry.domain for entry in host.registry.ops()}
    host.register(importlib.import_module(module), Plugin(name, folder.name, project["version"], module))
    domains = {entry.domain for entry in host.registry.ops() if entry.plugin == name}
    assert len(domains) <= 1
    assert not domains & (builtin | {"", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview.training", "com.microsoft"})


def imported_names(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


# --- Loading -------------------------------------------------------------------------------------------------------


def test_entry_points_are_loaded(install, monkeypatch):
    acme = install("acme", ACME)
    host = from_environment(monkeypatch)
    assert Plugin("acme", "onnxeqx-acme", "1.2", acme.module) in host.plugins
    entry = host.registry.lookup("org.acme", "Twice", 1)
    assert entry is not None
    assert entry.plugin == "acme"
    assert entry.location.startswith(str(acme.folder))


def test_plugins_are_disabled_by_name(install, monkeypatch):
    for name in ("acme", "other", "third"):
        install(name, ACME.replace("org.acme", f"org.{name}"))
    host = from_environment(monkeypatch, ONNXEQX_DISABLE_PLUGINS=" acme , third,")
    assert {"acme", "other", "third"} & names_of(host) == {"other"}
    assert "onnxeqx_acme" not in sys.modules  # not even imported


def test_a_builtin_plugin_is_disabled_by_name(monkeypatch):
    host = from_environment(monkeypatch, ONNXEQX_DISABLE_PLUGINS="generator,layers", ONNXEQX_PLUGIN_AUTOLOAD="0")
    assert not {"generator", "layers"} & names_of(host)
    assert host.registry.lookup("", "Constant", 17) is None
    assert host.registry.lift_rules() == ()


def test_autoload_is_switched_off(install, monkeypatch):
    install("acme", ACME)
    off = from_environment(monkeypatch, ONNXEQX_PLUGIN_AUTOLOAD="0")
    assert {plugin.distribution for plugin in off.plugins} == {"onnxeqx"}
    assert "onnxeqx_acme" not in sys.modules
    assert "acme" in names_of(from_environment(monkeypatch, ONNXEQX_PLUGIN_AUTOLOAD="1"))


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import a_module_that_is_not_there", "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit('needs a licence')", "SystemExit: needs a licence"),
        (ACME.replace("registry.add_module(__name__)", "raise ValueError('no data')"), "ValueError: no data"),
        (ACME.replace("registry.add_module(__name__)", "registry.add(twice); registry.nothing"), "AttributeError"),
    ],
    ids=["import", "syntax", "exit", "hook", "half-way"],
)
def test_a_broken_plugin_is_a_warning_that_names_it(install, monkeypatch, source, error):
    install("broken", source)
    install("sound", ACME.replace("org.acme", "org.sound"))
    with pytest.warns(RuntimeWarning, match=r"plugin 'broken' of onnxeqx-broken 1\.2 was not loaded") as warned:
        host = from_environment(monkeypatch)
    (message,) = (str(warning.message) for warning in warned)
    assert error in message
    assert "ONNXEQX_DISABLE_PLUGINS=broken" in message
    assert "broken" not in names_of(host)
    assert "sound" in names_of(host)
    assert host.registry.lookup("org.acme", "Twice", 1) is None
    assert host.pluggy.get_plugin("broken") is None


# --- Conflicts -----------------------------------------------------------------------------------------------------


def test_a_duplicate_operator_is_an_error_that_names_both_plugins(install, monkeypatch):
    install("acme", ACME)
    install("rival", OVERLAPPING)
    with pytest.raises(onnxeqx.PluginError, match=r"org\.acme::Twice is registered twice.*'acme'.*'rival'"):
        from_environment(monkeypatch)
    assert "rival" in names_of(from_environment(monkeypatch, ONNXEQX_DISABLE_PLUGINS="acme"))


def test_an_operator_is_replaced_on_purpose(monkeypatch):
    host = PluginHost(autoload=False)
    register(host, "acme", ACME, monkeypatch)
    register(host, "rival", OVERLAPPING.replace("(__name__)", "(__name__, override=True)"), monkeypatch)
    assert [entry.plugin for entry in host.registry.ops("org.acme::Twice")] == ["rival"]


def test_a_builtin_operator_is_replaced_on_purpose(install, monkeypatch):
    source = ACME.replace('"Twice", domain="org.acme"', '"Identity"')
    install("acme", source)
    with pytest.raises(onnxeqx.PluginError, match=r"Identity is registered twice.*'tensor'.*'acme'"):
        from_environment(monkeypatch)
    sys.modules.pop("onnxeqx_acme")
    install("later", source.replace("(__name__)", "(__name__, override=True)"))
    host = from_environment(monkeypatch, ONNXEQX_DISABLE_PLUGINS="acme")
    assert host.registry.lookup("", "Identity", 17).plugin == "later"


@pytest.mark.parametrize("last", ["registry.add(clash)", "registry.add(clash, override=True); raise ValueError"])
def test_a_plugin_that_fails_leaves_nothing_of_itself(monkeypatch, last):
    host = PluginHost(autoload=False)
    register(host, "acme", ACME, monkeypatch)
    before = state(host)
    source = f"""
import onnxeqx
from onnxeqx._registry import rewrite

@onnxeqx.op("New", domain="org.rival")
def new(x):
    return x

@onnxeqx.op("Twice", domain="org.acme", since=7)
def clash(x):
    return x

@onnxeqx.lift(object, ops=("MatMul",))
def layer(call, context):
    return None

@rewrite(ops=("Reshape",))
def other(call):
    return None

@onnxeqx.hookimpl
def onnxeqx_register_ops(registry):
    registry.add(new)
    registry.add(layer)
    registry.add(other)
    {last}
"""
    with pytest.raises((onnxeqx.PluginError, ValueError)):
        register(host, "rival", source, monkeypatch)
    assert state(host) == before
    register(
        host, "rival", source.replace(last, "registry.add(clash, override=True)"), monkeypatch
    )  # and once repaired
    assert host.registry.lookup("org.rival", "New", 1).plugin == "rival"


@pytest.mark.parametrize(
    ("hook", "names"),
    [
        ("def onnxeqx_register_opz(registry):", "onnxeqx_register_opz"),
        ("def onnxeqx_register_ops(registry, opset):", "opset"),
    ],
    ids=["hook", "argument"],
)
def test_an_unknown_hook_or_argument_is_an_error(install, monkeypatch, hook, names):
    host = PluginHost(autoload=False)
    before = state(host)
    source = ACME.replace("def onnxeqx_register_ops(registry):", hook)
    with pytest.raises(onnxeqx.PluginError, match=rf"'acme' of onnxeqx-acme 1\.2.*{names}"):
        register(host, "acme", source, monkeypatch)
    assert state(host) == before
    assert host.pluggy.get_plugin("acme") is None
    host.pluggy.check_pending()
    install("acme", source)
    with pytest.raises(onnxeqx.PluginError, match=names):
        from_environment(monkeypatch)


@pytest.mark.parametrize("name", ["acme", "tensor", "layers"])
def test_two_plugins_of_one_name_are_an_error_that_names_both(install, monkeypatch, name):
    first = install(name, ACME)
    other = "onnxeqx" if name != "acme" else "onnxeqx-twin"
    if name == "acme":
        twin = install("twin", ACME.replace("org.acme", "org.twin"))
        entries = next(twin.folder.glob("*.dist-info")) / "entry_points.txt"
        entries.write_text("[onnxeqx]\nacme = onnxeqx_twin\n")
    with pytest.raises(onnxeqx.PluginError, match=f"Two plugins are named '{name}'") as raised:
        from_environment(monkeypatch)
    assert first.distribution in str(raised.value)
    assert f" of {other} " in str(raised.value)


def test_one_module_is_one_plugin(monkeypatch):
    host = PluginHost(autoload=False)
    module = register(host, "acme", ACME, monkeypatch)
    with pytest.raises(onnxeqx.PluginError, match=r"'acme' of onnxeqx-acme.*'alias' of onnxeqx-alias.*the same module"):
        host.register(module, Plugin("alias", "onnxeqx-alias", "1", module.__name__))


# --- What docs/plugins.md says -------------------------------------------------------------------------------------


def documented(title: str) -> list[str]:
    """The Python examples under a heading."""
    (section,) = re.findall(rf"^##+ `?{re.escape(title)}`?$(.*?)(?=^##+ |\Z)", DOCS, re.MULTILINE | re.DOTALL)
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


@pytest.mark.parametrize("hook", HOOKS, ids=hook_names())
def test_every_hook_and_argument_is_documented(hook):
    arguments = ", ".join(inspect.signature(hook).parameters)
    assert f"\n### `{hook.__name__}({arguments})`\n" in DOCS
    assert hook.__doc__


def test_no_hook_is_documented_that_is_not_there():
    assert set(re.findall(r"onnxeqx_register_\w+", DOCS)) == set(hook_names())


def test_every_environment_variable_is_documented():
    source = inspect.getsource(manager)
    variables = set(re.findall(r"environ\.get\(\"(\w+)\"", source))
    assert variables == {"ONNXEQX_DISABLE_PLUGINS", "ONNXEQX_PLUGIN_AUTOLOAD"}
    assert all(f"| `{variable}=" in DOCS for variable in variables)


def test_every_hook_is_called_with_its_arguments(monkeypatch):
    called = {}
    plugin = types.ModuleType("onnxeqx_every_hook")
    for hook in HOOKS:
        arguments = ", ".join(inspect.signature(hook).parameters)
        source = f"def {hook.__name__}({arguments}): called[{hook.__name__!r}] = ({arguments},)"
        exec(source, {"called": called}, vars(plugin))
        onnxeqx.hookimpl(getattr(plugin, hook.__name__))
    host = PluginHost(autoload=False)
    host.register(plugin, Plugin("every", "onnxeqx-every", "1", plugin.__name__))
    monkeypatch.setattr(manager, "host", lambda: host)
    commands = typer.Typer()
    commands.command()(lambda: None)
    monkeypatch.setattr(onnxeqx.cli, "app", commands)
    monkeypatch.setattr(sys, "argv", ["onnxeqx"])
    with pytest.raises(SystemExit) as ended:
        onnxeqx.cli.main()
    assert not ended.value.code
    # These two are called when training first looks up a name.
    training = {"onnxeqx_register_losses", "onnxeqx_register_datasets"}
    assert set(called) == set(hook_names()) - training
    assert called["onnxeqx_register_commands"] == (commands,)
    assert all(isinstance(called[name][0], type(host.registry)) for name in hook_names()[:2])


def test_the_whole_plugin_of_the_docs(install, monkeypatch):
    (source,) = documented("A whole plugin")
    assert len([line for line in source.splitlines() if line.strip()]) <= 20
    acme = install("acme", source)
    (project,) = re.findall(r"```toml\n(.*?)```", DOCS, re.DOTALL)
    project = tomllib.loads(project)
    assert project["project"]["entry-points"]["onnxeqx"] == {"acme": acme.module}
    assert project["build-system"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
    text = NEEDS_EXAMPLE.replace("onnxeqx.example", "acme").replace(', "org.acme" : 3', "")
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    model = build(convert(read_proto(named(text)), "docs", from_environment(monkeypatch)))
    np.testing.assert_allclose(model(x), np.concatenate([x, np.tanh(1.5 * np.tanh(0.25 * x))]), rtol=1e-5)


def test_the_printing_rules_of_the_docs(install, monkeypatch):
    (source,) = documented("What a call prints as")
    install("acme", source)
    text = """
<ir_version: 8, opset_import: ["" : 17, "org.acme" : 1]>
heads (float[batch, seq, 6] x) => (float y)
{
    h = org.acme.SplitHeads<heads = 2>(x)
    y = org.acme.Softcap<cap = 0.5>(h)
}
"""
    printed = convert(read_proto(named(text)), "docs", from_environment(monkeypatch))
    assert "0.5 * jnp.tanh(x.reshape(*x.shape[:2], 2, -1).transpose(0, 2, 1, 3) / 0.5)" in printed.source
    x = np.linspace(-1, 1, 36, dtype=np.float32).reshape(2, 3, 6)
    wanted = np.moveaxis(0.5 * np.tanh(x / 0.5).reshape(2, 3, 2, 3), -2, 1)
    np.testing.assert_allclose(build(printed)(x), wanted, rtol=1e-5)


def test_the_layers_and_rules_of_the_docs(install, monkeypatch):
    (source,) = documented("Layers and rules")
    acme = install("acme", source)
    text = """
<ir_version: 8, opset_import: ["" : 17, "org.acme" : 1]>
scaled (float[batch, 3] x) => (float[batch, 3] y) <float[3] w = {1, 2, 3}>
{
    r = Relu(x)
    h = Abs(r)
    y = org.acme.Scale(h, w)
}
"""
    printed = convert(read_proto(named(text)), "docs", from_environment(monkeypatch))
    assert "jax.nn.relu(x)" in printed.source
    assert "abs" not in printed.source
    assert acme.distribution in printed.source
    model = build(printed)
    assert isinstance(model.w, sys.modules[acme.module].Scale)
    assert list(onnxeqx.key_paths(model)) == ["w.weight"]
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(model(x), x * np.float32([1, 2, 3]))


def test_the_pattern_of_the_docs(install, monkeypatch):
    (source,) = documented("Patterns")
    install("acme", source)
    host = from_environment(monkeypatch)
    assert next(iter(host.registry.pattern_rules())).name == "log_cosh_in_one"
    text = """
<ir_version: 8, opset_import: ["" : 17]>
smooth (float[n] x) => (float[m] y)
{
    two = Constant<value_float = 2.0>()
    z = Neg(x)
    a = Exp(z)
    b = Exp(x)
    c = Add(a, b)
    d = Div(c, two)
    y = Log(d)
}
"""
    printed = convert(read_proto(named(text)), "docs", host)
    assert "onnxeqx_acme.log_cosh(x)" in printed.source
    x = np.linspace(-3, 3, 7, dtype=np.float32)
    np.testing.assert_allclose(build(printed)(x), np.log(np.cosh(x)), rtol=1e-5, atol=1e-6)
    assert "log_cosh" not in convert(read_proto(named(text)), "docs", host, patterns=False).source


def test_nothing_stays_of_the_patterns_of_a_plugin_that_fails(monkeypatch):
    (source,) = documented("Patterns")
    failing = source.replace("registry.add_module(__name__)", "registry.add_module(__name__)\n    raise RuntimeError")
    host = PluginHost(autoload=False)
    before = host.registry.pattern_rules()
    with pytest.raises(RuntimeError):
        register(host, "acme", failing, monkeypatch)
    assert host.registry.pattern_rules() == before


def test_rules_of_plugins_are_tried_before_the_builtin_ones(install, monkeypatch):
    (source,) = documented("Layers and rules")
    install("acme", source)
    registry = from_environment(monkeypatch).registry
    for rules, builtin in ((registry.lift_rules(), "layers"), (registry.rewrite_rules(), "rewrites")):
        order = [rule.plugin for rule in rules]
        assert set(order) == {"acme", builtin}
        assert order == sorted(order, key=lambda name: name == builtin)


def test_the_command_of_the_docs(monkeypatch):
    (source,) = documented("onnxeqx_register_commands(cli)")
    host = PluginHost(autoload=False)
    register(host, "acme", source, monkeypatch)
    cli = typer.Typer()
    cli.command()(lambda: None)
    host.pluggy.hook.onnxeqx_register_commands(cli=cli)
    result = CliRunner().invoke(cli, ["greet", "Ada"])
    assert (result.exit_code, result.output) == (0, "Hello Ada\n")


# --- The command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def command(install, monkeypatch):
    install("acme", ACME)
    host = from_environment(monkeypatch)
    monkeypatch.setattr(manager, "host", lambda: host)
    return lambda *arguments: CliRunner(env={"COLUMNS": "250", "NO_COLOR": "1"}).invoke(onnxeqx.cli.app, arguments)


def test_the_plugins_command_shows_where_a_plugin_comes_from(command):
    result = command("plugins")
    assert result.exit_code == 0
    assert re.search(r"^ *acme +onnxeqx-acme +1\.2 +onnxeqx_acme +1 *$", result.output, re.MULTILINE)
    assert re.search(r"^ *tensor +onnxeqx +", result.output, re.MULTILINE)


@pytest.mark.parametrize("name", ["Twice", "org.acme::Twice"])
def test_the_ops_command_shows_the_plugin_file_and_line(command, name):
    result = command("ops", name)
    assert result.exit_code == 0
    assert re.search(r"^ *org\.acme::Twice +1- +acme +\S*onnxeqx_acme\.py:4 *$", result.output, re.MULTILINE)

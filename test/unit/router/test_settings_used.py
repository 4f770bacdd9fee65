"""No setting without effect: each is read by the code that runs, not only by its own checks."""

import ast
from pathlib import Path

import kairos.router
from kairos.router.config.schema import settings_of
from kairos.router.config.settings import RouterConfig
from kairos.router.edge.tenant import Tenant
from kairos.router.observe.metrics import RouterMetrics

ROUTER = Path(kairos.router.__file__).parent


def read_in(tree: ast.AST) -> set[str]:
    """Names of attributes that are read."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def used() -> set[str]:
    """Attributes that the router reads, through properties of the configuration too."""
    names: set[str] = set()
    for path in ROUTER.glob("**/*.py"):
        if path.name not in ("settings.py", "metrics.py"):
            names |= read_in(ast.parse(path.read_text()))
    config = ast.parse((ROUTER / "config/settings.py").read_text())
    functions = [n for n in ast.walk(config) if isinstance(n, ast.FunctionDef)]
    for function in functions:
        decorated = any(
            isinstance(d, ast.Name) and d.id == "property" for d in function.decorator_list
        )
        if decorated and function.name in names:
            names |= read_in(function)
    # Read where the configuration as a whole refuses an open door.
    [whole] = [
        n for n in ast.walk(config) if isinstance(n, ast.ClassDef) and n.name == "RouterConfig"
    ]
    return names | read_in(whole)


def test_every_setting_is_used() -> None:
    names = {name for group in RouterConfig.groups().values() for name in settings_of(group)}
    assert names - used() == set()


def test_every_setting_of_a_tenant_is_used() -> None:
    assert set(settings_of(Tenant)) - used() == set()


def test_every_metric_is_set_somewhere() -> None:
    metrics = RouterMetrics()
    names = {
        name
        for name, value in vars(metrics).items()
        if type(value).__module__.startswith("prometheus_client") and name != "registry"
    }
    ended = read_in(
        next(
            node
            for node in ast.walk(ast.parse((ROUTER / "observe/metrics.py").read_text()))
            if isinstance(node, ast.FunctionDef) and node.name == "ended"
        )
    )
    assert names - used() - ended == set()

"""What an environment's code consists of, and what it can see besides the environment: attributes of its classes,
variables of their modules, default arguments. What changes of these while the environment is used is part of its state.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable, Mapping
from enum import EnumType
from typing import Any, NamedTuple, cast

from gymnasium import spaces

from orchestrator.environments.cached_methods import CACHED, remembers_only_objects
from orchestrator.environments.named_code import functions_of, is_data, is_held, is_named
from orchestrator.environments.object_nodes import (
    code_digest,
    has_own_globals,
    module_of,
    names_in,
    type_name,
)

_LIBRARIES = {*sys.stdlib_module_names, "numpy", "torch", "gymnasium"}


class Variable(NamedTuple):
    """Something that code can see: the attribute `name` of a module, class, function or closure's cell, or the
    global variable of a namespace."""

    holder: Any
    name: str

    def value(self) -> Any:
        """Its value now; raises KeyError or ValueError where there is none."""
        if isinstance(self.holder, dict):
            return cast("dict[str, Any]", self.holder)[self.name]
        if self._is_member():
            return self.holder.__members__[self.name]
        if isinstance(self.holder, _NAMESPACES) and self.name != _BASES:
            # Of a class, its own: not what a descriptor makes of it, or a base has.
            return vars(self.holder)[self.name]
        return getattr(self.holder, self.name)

    def set(self, value: Any) -> None:
        if isinstance(self.holder, dict):
            self.holder[self.name] = value
        elif self.name != _BASES and not self._is_member():  # which are those that were there, with what they held
            setattr(self.holder, self.name, value)

    def _is_member(self) -> bool:
        return isinstance(self.holder, EnumType) and self.name in self.holder.__members__


_NAMESPACES = (type, types.ModuleType)
_BASES = "__bases__"


class ReachableCode:
    """What the methods of `classes`, and what they call, can see by name.

    So can `functions`, which are attributes: their own default arguments and closures are known already. `called` are
    the classes and functions in the variables that were found so far: what is in a table of functions, say.

    Code of the standard library, numpy, torch and gymnasium itself, and of other libraries than the classes' own, is
    taken as it is.
    """

    def __init__(
        self, classes: Iterable[type], functions: Iterable[types.FunctionType] = (), called: Iterable[Any] = ()
    ) -> None:
        self.functions: dict[str, str] = {}
        """Digests of the code, by the function's name."""
        self.variables: dict[str, Variable] = {}
        self.modules: dict[str, types.ModuleType] = {}
        """Those that the functions are of."""
        self.refused: list[str] = []
        """What holds state that can't be captured, and why."""
        classes, functions = list(classes), list(functions)
        self._held = set(map(id, functions))
        self._own = {module_of(kind).partition(".")[0] for kind in classes}
        self._seen: set[int] = set()
        self._modules_seen: set[tuple[str, frozenset[str]]] = set()
        self._pending: list[Any] = [*called, *classes, *functions]
        while self._pending:
            found = self._pending.pop()
            if id(found) in self._seen:
                continue
            self._seen.add(id(found))
            if isinstance(found, type):
                self._add_class(found)
            else:
                self._add_function(found)

    def _add_class(self, kind: type) -> None:
        for base in kind.__mro__:
            if base is not kind:
                self._pending.append(base)
        if not self._is_looked_into(module_of(kind)):
            return
        self._pending.append(type(kind))
        self._note_module(module_of(kind))
        methods: list[str] = []
        for name, value in list(_attributes(kind).items()):
            functions = list(functions_of(value))
            self._pending.extend(functions)
            if not remembers_only_objects(value, kind):
                self._check_cache(f"{type_name(kind)}.{name}", value)
            methods += [name] if functions else []
            if not is_named(kind):
                continue  # its attributes are in the graph of whoever holds it
            if any(map(self._is_held, functions)) or (
                not functions and not name.startswith(("__", "_abc_")) and is_data(value)
            ):
                self.variables[f"{type_name(kind)}.{name}"] = Variable(kind, name)
        if is_named(kind) and any(map(self._is_held, kind.__bases__)):
            self.variables[f"{type_name(kind)}.{_BASES}"] = Variable(kind, _BASES)
        self.functions[type_name(kind)] = ", ".join([*map(type_name, kind.__mro__), *sorted(methods)])

    def _add_function(self, function: types.FunctionType) -> None:
        # `__module__` may be that of a function that it wraps.
        module = function.__globals__.get("__name__", function.__module__)
        if not self._is_looked_into(module):
            return
        name = type_name(function)
        self.functions[name] = code_digest(function.__code__)
        self._note_module(function.__module__)
        if id(function) not in self._held and is_named(function):
            self.variables[f"{name}.__dict__"] = Variable(function, "__dict__")
            self._add_arguments(name, function)
        names = frozenset(names_in(function.__code__))
        for variable in sorted(names & function.__globals__.keys()):
            value = function.__globals__[variable]
            self._see(f"{module}:{variable}", Variable(function.__globals__, variable), value, names)
        for imported in _imports(names, function.__globals__.get("__package__")):
            self._see_module(imported, names)

    def _add_arguments(self, name: str, function: types.FunctionType) -> None:
        for attribute in ("__defaults__", "__kwdefaults__"):
            if getattr(function, attribute):
                self.variables[f"{name}.{attribute}"] = Variable(function, attribute)
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                content: Any = cell.cell_contents
            except ValueError:
                continue
            self._see(f"{name}.{variable}", Variable(cell, "cell_contents"), content, frozenset())

    def _see(self, name: str, variable: Variable, value: Any, names: frozenset[str]) -> None:
        functions = list(functions_of(value))
        self._check_cache(name, value)
        if functions:
            self._pending.extend(functions)
            self.refused.extend(f"{name} is a function made by exec" for one in functions if has_own_globals(one))
            if isinstance(value, types.MethodType) or any(map(self._is_held, functions)):
                self.variables[name] = variable
        elif isinstance(value, type):
            self._pending.append(value)
            if self._is_held(value):
                self.variables[name] = variable
        elif isinstance(value, types.ModuleType):
            self._see_module(value, names)
        elif is_data(value) and not (variable.name.startswith("__") and variable.name not in ("__defaults__",)):
            self.variables[name] = variable

    def _see_module(self, module: types.ModuleType, names: frozenset[str]) -> None:
        if (module.__name__, names) in self._modules_seen or not self._is_looked_into(module.__name__):
            return
        self._modules_seen.add((module.__name__, names))
        # Any name that the function mentions may be one of the module's, or of a module in that.
        for inner in sorted(names & vars(module).keys()):
            self._see(f"{module.__name__}:{inner}", Variable(vars(module), inner), vars(module)[inner], names)

    def _check_cache(self, name: str, value: Any) -> None:
        function = getattr(value, "__func__", value)
        if isinstance(function, CACHED) and function.cache_info().currsize:
            self.refused.append(
                f"{name} is a functools.lru_cache that is not empty: use functools.cache, and on a method, or keep what"
                " it remembers in an attribute"
            )

    def _note_module(self, name: str) -> None:
        module = sys.modules.get(name)
        if module is not None:
            self.modules[name] = module

    def _is_held(self, code: Any) -> bool:
        return is_held(code) and self._is_looked_into(module_of(code))

    def _is_looked_into(self, module: str | None) -> bool:
        if module is None or module not in sys.modules:
            return False
        top = module.partition(".")[0]
        if top in _LIBRARIES:
            return module.startswith("gymnasium.envs.")
        file = getattr(sys.modules[module], "__file__", None) or ""
        return top in self._own or ("site-packages" not in file and "dist-packages" not in file)


def _attributes(kind: type) -> Mapping[str, Any]:
    """A class' own; of an enumeration its members, without what Enum itself keeps."""
    own = vars(kind)
    if not isinstance(kind, EnumType):
        return own
    return {name: own[name] for name in own if name[0] != "_" or name[-1] != "_"} | dict(kind.__members__)


def _imports(names: Iterable[str], package: str | None) -> Iterable[types.ModuleType]:
    """The modules that a function which mentions `names` may import itself, also relatively to its package."""
    parents = [""]
    while package:
        parents.append(package)
        package = package.rpartition(".")[0]
    for name in sorted(names):
        for parent in parents:
            module = sys.modules.get(f"{parent}.{name}" if parent and name else parent or name)
            if module is not None:
                yield module


class Known:
    """The code that new objects have: what a saved state may name."""

    def __init__(self, objects: Iterable[Any], modules: Iterable[types.ModuleType]) -> None:
        self.classes: dict[str, type] = {type_name(kind): kind for kind in (*_BUILT_IN, *_SPACES)}
        self.functions: dict[tuple[str, str], types.FunctionType] = {}
        self.code: dict[tuple[str, str], tuple[types.CodeType, dict[str, Any]]] = {}
        """By name and digest, with its global variables; also that of functions in functions."""
        self.modules: dict[str, types.ModuleType] = {}
        self.builtins: dict[str, Any] = {}
        for value in objects:
            for kind in value.__mro__ if isinstance(value, type) else type(value).__mro__:
                self._add(kind)
            self._add(value)
        for module in modules:
            for value in list(vars(module).values()):
                if getattr(value, "__module__", None) == module.__name__:
                    self._add(value)
        for kind in list(self.classes.values()):
            for value in list(vars(kind).values()):
                self._add(getattr(value, "__func__", value))

    def _add(self, value: Any) -> None:
        if isinstance(value, type):
            self.classes[type_name(value)] = value
        elif isinstance(value, types.FunctionType):
            self.functions.setdefault((type_name(value), code_digest(value.__code__)), value)
            self._add_code(value.__module__, value.__code__, value.__globals__)
        elif isinstance(value, types.ModuleType):
            self.modules[value.__name__] = value
        elif isinstance(value, types.BuiltinFunctionType):
            self.builtins[f"{value.__module__}:{value.__qualname__}"] = value

    def _add_code(self, module: str | None, code: types.CodeType, variables: dict[str, Any]) -> None:
        key = (f"{module}:{code.co_qualname}", code_digest(code))
        if key not in self.code:
            self.code[key] = code, variables
            for constant in code.co_consts:
                if isinstance(constant, types.CodeType):
                    self._add_code(module, constant, variables)


_BUILT_IN = (object, bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, type(None))
_SPACES = tuple(kind for kind in vars(spaces).values() if isinstance(kind, type))

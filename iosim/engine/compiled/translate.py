"""From Python to LLVM's language: plain functions become functions, processes become state machines.

What is understood is the subset in which models are written (docs/background/engine.md): numbers, attributes of
objects, lists of numbers, `if`, `while`, `for ... in range`, calls of functions and, in processes, `yield` of an effect
and `yield from` a helper. Every value is a 64-bit word. A function may be an argument: what is given such is translated
for it alone. Anything else is refused with the place where it stands.

A process becomes one function that continues at its program counter. Its locals, and those of the helpers it calls by
`yield from`, stand in its frame in memory, since they must outlive a wait; a helper's code stands there once, and
returns to whoever called it. An effect that does not make the process wait does not leave the function.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from types import FunctionType, ModuleType
from typing import Any, Final

from iosim import effects
from iosim.engine import draws
from iosim.engine.compiled import core as engine_core
from iosim.engine.compiled.layout import ANY, INT, SCRATCH, Function, Int, Kind, Layout, List, Obj, Unknown, View
from iosim.errors import IosimError

Value = tuple[Kind, str]
MASK: Final = (1 << 64) - 1
# Draws are defined on unsigned words: their shifts to the right bring in zeros.
UNSIGNED: Final = (draws.random_bits, draws.cell)
PERFORM: Final = {
    effects.SPEND: engine_core.perform_spend,
    effects.NOTIFY: engine_core.perform_notify,
    effects.WAIT: engine_core.perform_wait,
    effects.TAKE: engine_core.perform_take,
    effects.GIVE: engine_core.perform_give,
    effects.LEAVE_GUEST: engine_core.perform_leave_guest,
    effects.ENTER_GUEST: engine_core.perform_enter_guest,
    effects.LEVEL: engine_core.perform_level,
    effects.SPIN: engine_core.perform_spin,
    effects.SLEEP_UNTIL: engine_core.perform_sleep_until,
    effects.WAIT_UNTIL: engine_core.perform_wait_until,
    effects.NOTIFY_AFTER: engine_core.perform_notify_after,
}
_BINARY: Final = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.BitAnd: "and", ast.BitOr: "or", ast.BitXor: "xor",
    ast.LShift: "shl", ast.RShift: "ashr",
}  # fmt: skip
_COMPARE: Final = {
    ast.Eq: "eq", ast.NotEq: "ne", ast.Lt: "slt", ast.LtE: "sle", ast.Gt: "sgt", ast.GtE: "sge",
}  # fmt: skip


class Untranslatable(IosimError):  # noqa: N818 - the name says what it is
    """A model uses something on its hot path that cannot be compiled; the message names file and line."""


@cache
def _source(function: Any) -> tuple[ast.FunctionDef, str, int]:
    lines, first = inspect.getsourcelines(function)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    return definition, inspect.getsourcefile(function) or "?", first


def _body(definition: ast.FunctionDef) -> list[ast.stmt]:
    return definition.body[1:] if ast.get_docstring(definition) is not None else definition.body


@dataclass
class Local:
    """A local variable: what it holds, and where: a stack slot's name, or a word of the frame."""

    kind: Kind
    place: str | int


@dataclass
class Scope:
    """The function whose statements are being translated."""

    function: Any
    key: Any
    locals: dict[str, Local] = field(default_factory=dict)
    loops: list[tuple[str, str]] = field(default_factory=list)


class Module:
    """The translation of one structure.

    Args:
        layout: Where everything is.
        core: The engine's state, part of the layout.
        table: The request table, part of the layout.
        intrinsics: Functions that have another meaning here: called with the emitter and the arguments.
    """

    def __init__(
        self, layout: Layout, core: Any, table: Any, intrinsics: dict[Any, Callable[[_Emitter, list[Value]], Value]]
    ) -> None:
        self.layout = layout
        self.core = core
        self.table = table
        self.intrinsics = intrinsics
        self.single = {cls: layout.address(obj) for cls, obj in layout.single.items()}
        self.texts: list[str] = []
        self.functions: dict[Any, tuple[str, list[Kind | None]]] = {}
        self.processes: dict[Any, tuple[int, int]] = {}

    def reference(self, kind: Kind, operand: str) -> Value:
        """A reference, by its place where there is only one object of the class."""
        if isinstance(kind, Obj) and kind.cls in self.single:
            return kind, str(self.single[kind.cls])
        return kind, operand

    def function(self, function: Any, kinds: list[Kind]) -> tuple[str, Kind | None]:
        """Return the name and the result's kind of a plain function for arguments of such kinds."""
        key = (function, tuple(kinds))
        if key not in self.functions:
            name = f"@f{len(self.functions)}_{function.__name__}"
            result: list[Kind | None] = [None]
            self.functions[key] = (name, result)
            self.texts.append(_Plain(self, function, kinds, name, result).text())
        name, found = self.functions[key]
        return name, found[0]

    def process(self, function: Any, kinds: list[Kind]) -> tuple[int, int]:
        """Return the number and the frame's size of a process for arguments of such kinds."""
        key = (function, tuple(kinds))
        if key not in self.processes:
            number = len(self.processes)
            emitter = _Process(self, function, kinds, f"@resume_{number}")
            self.texts.append(emitter.text())
            self.processes[key] = (number, emitter.words)
        return self.processes[key]

    def text(self, entries: list[Any]) -> str:
        """Return the whole module, with entry points for functions of `core` (arguments: numbers)."""
        exported = []
        for function in entries:
            parameters = list(inspect.signature(function).parameters)[1:]
            kinds: list[Kind] = [Obj(type(self.core)), *([INT] * len(parameters))]
            name, _ = self.function(function, kinds)
            arguments = "".join(f", i64 %a{i}" for i in range(len(parameters)))
            passed = "".join(f", i64 %a{i}" for i in range(len(parameters)))
            place = self.layout.address(self.core)
            call = f"call i64 {name}(ptr %M, ptr %G, i64 {place}{passed})"
            exported.append(
                f"define i64 @{function.__name__}(ptr noalias %M, ptr noalias %G{arguments}) {{\n"
                f"  %r = {call}\n  ret i64 %r\n}}"
            )
        return "\n\n".join([*self.texts, self._resume(), *exported, "!0 = !{}"]) + "\n"

    def _resume(self) -> str:
        """The function that continues a context: the process it is an instance of, with its frame."""
        e = _Emitter(self)
        core = (Obj(type(self.core)), str(self.layout.address(self.core)))
        kind = e.item(e.attribute(core, "process"), "%context")[1]
        frame = e.item(e.attribute(core, "frame"), "%context")[1]
        cases = " ".join(f"i64 {number}, label %p{number}" for number, _ in self.processes.values())
        e.emit(f"switch i64 {kind}, label %none [ {cases} ]")
        for number, _ in self.processes.values():
            e.emit_label(f"p{number}")
            r = e.temp(f"call i64 @resume_{number}(ptr %M, ptr %G, i64 {frame}, i64 %context)")
            e.emit(f"ret i64 {r}")
        e.emit_label("none")
        e.emit("ret i64 1")
        return "define internal i64 @resume(ptr noalias %M, ptr noalias %G, i64 %context) {\n" + e.body() + "}"


class _Emitter:
    """Writes one function: expressions and statements, block by block."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.lines: list[str | Callable[[], str]] = []
        self.allocas: list[str] = []
        self.counter = 0
        self.open = True
        self.scope: Scope

    # -- text ---------------------------------------------------------------------------------------------------

    def body(self) -> str:
        lines = (line if isinstance(line, str) else line() for line in self.lines)
        return "entry:\n" + "".join(f"  {line}\n" for line in self.allocas) + "\n".join(lines) + "\n"

    def emit(self, line: str) -> None:
        if self.open:
            self.lines.append(f"  {line}")
            if line.startswith(("br ", "ret ", "switch ", "unreachable")):
                self.open = False

    def temp(self, instruction: str) -> str:
        self.counter += 1
        name = f"%t{self.counter}"
        self.emit(f"{name} = {instruction}")
        return name

    def label(self, what: str = "b") -> str:
        self.counter += 1
        return f"{what}{self.counter}"

    def emit_label(self, label: str) -> None:
        if self.open:
            self.emit(f"br label %{label}")
        self.lines.append(f"{label}:")
        self.open = True

    def refuse(self, node: ast.AST, why: str) -> Untranslatable:
        _, file, first = _source(self.scope.function)
        line = first + getattr(node, "lineno", 1) - 1
        return Untranslatable(f"cannot be compiled: {why}", f"{file}:{line}")

    # -- memory -------------------------------------------------------------------------------------------------

    def add(self, a: str, b: str) -> str:
        if not a.startswith("%") and not b.startswith("%"):
            return str(int(a) + int(b))
        if b == "0":
            return a
        if a == "0":
            return b
        return self.temp(f"add i64 {a}, {b}")

    def word(self, at: str) -> str:
        return self.temp(f"getelementptr i64, ptr %M, i64 {at}")

    def load(self, at: str, fixed: bool = False) -> str:
        """Load a word; ``fixed``: it does not change during a run (places of objects and lists)."""
        return self.temp(f"load i64, ptr {self.word(at)}, align 8" + (", !invariant.load !0" if fixed else ""))

    def store(self, at: str, value: str) -> None:
        self.emit(f"store i64 {value}, ptr {self.word(at)}, align 8")

    def slot(self, value: Value, name: str, node: ast.AST | None = None) -> tuple[str, Kind]:
        kind, operand = value
        if kind == ANY:
            return str(SCRATCH), ANY
        if not isinstance(kind, Obj):
            raise self.refuse(node or ast.Pass(), f"'{name}' of what is no object")
        slots = self.module.layout.slots.get(kind.cls, {})
        if name not in slots:
            raise self.refuse(node or ast.Pass(), f"attribute '{name}' of {kind.cls.__name__} is no number or object")
        number, found = slots[name]
        return self.add(operand, str(number)), found

    def attribute(self, value: Value, name: str, node: ast.AST | None = None) -> Value:
        at, kind = self.slot(value, name, node)
        if isinstance(kind, View):
            return kind, "0"
        if isinstance(kind, Obj) and kind.cls in self.module.single:
            return kind, str(self.module.single[kind.cls])
        return kind, self.load(at, fixed=not isinstance(kind, Int))

    def item(self, value: Value, index: str, node: ast.AST | None = None) -> Value:
        kind, operand = value
        if isinstance(kind, View):
            pointer = self.temp(f"getelementptr i{kind.bits}, ptr %G, i64 {index}")
            loaded = self.temp(f"load i{kind.bits}, ptr {pointer}")
            return INT, loaded if kind.bits == 64 else self.temp(f"zext i{kind.bits} {loaded} to i64")
        if kind == ANY:
            return ANY, "0"
        if not isinstance(kind, List):
            raise self.refuse(node or ast.Pass(), "an index into what is no list")
        begin = self.load(operand, fixed=True)
        return self.module.reference(kind.element, self.load(self.add(begin, index)))

    def set_item(self, value: Value, index: str, new: str, node: ast.AST) -> None:
        kind, operand = value
        if isinstance(kind, View):
            pointer = self.temp(f"getelementptr i{kind.bits}, ptr %G, i64 {index}")
            narrow = new if kind.bits == 64 else self.temp(f"trunc i64 {new} to i{kind.bits}")
            self.emit(f"store i{kind.bits} {narrow}, ptr {pointer}")
        elif isinstance(kind, List):
            self.store(self.add(self.load(operand, fixed=True), index), new)
        elif kind != ANY:
            raise self.refuse(node, "an index into what is no list")

    # -- locals: overridden for processes -----------------------------------------------------------------------

    def declare(self, name: str, kind: Kind) -> Local:
        if name not in self.scope.locals:
            place = f"%v{len(self.allocas)}"
            self.allocas.append(f"{place} = alloca i64")
            self.scope.locals[name] = Local(kind, place)
        return self.scope.locals[name]

    def read(self, local: Local) -> Value:
        if isinstance(local.kind, Obj) and local.kind.cls in self.module.single:
            return local.kind, str(self.module.single[local.kind.cls])
        return local.kind, self.temp(f"load i64, ptr {local.place}")

    def write(self, local: Local, value: str) -> None:
        self.emit(f"store i64 {value}, ptr {local.place}")

    # -- expressions --------------------------------------------------------------------------------------------

    def glob(self, name: str, node: ast.AST) -> Any:
        found = self.scope.function.__globals__
        if name in found:
            return found[name]
        builtins = found["__builtins__"]
        builtins = builtins if isinstance(builtins, dict) else vars(builtins)
        if name in builtins:
            return builtins[name]
        raise self.refuse(node, f"unknown name '{name}'")

    def constant(self, value: Any, node: ast.AST) -> Value:
        if isinstance(value, (bool, int)):
            number = int(value) & MASK
            return INT, str(number - (1 << 64) if number >> 63 else number)
        if isinstance(value, FunctionType):
            raise self.refuse(node, f"the function '{value.__name__}' where a number or an object is wanted")
        raise self.refuse(node, f"{value!r} is no number")

    def expr(self, node: ast.expr) -> Value:
        if isinstance(node, ast.Constant):
            return self.constant(node.value, node)
        if isinstance(node, ast.Name):
            if node.id in self.scope.locals:
                value = self.read(self.scope.locals[node.id])
                if isinstance(value[0], Function):
                    raise self.refuse(node, f"the function '{node.id}' where a number or an object is wanted")
                return value
            return self.constant(self.glob(node.id, node), node)
        if isinstance(node, ast.Attribute):
            module = self.module_of(node.value)
            if module is not None:
                return self.constant(getattr(module, node.attr), node)
            return self.attribute(self.expr(node.value), node.attr, node)
        if isinstance(node, ast.Subscript):
            return self.item(self.expr(node.value), self.index(node), node)
        if isinstance(node, ast.BinOp):
            return INT, self.binary(node.op, self.expr(node.left)[1], self.expr(node.right)[1], node)
        if isinstance(node, ast.UnaryOp):
            if isinstance(node.op, ast.Not):
                return INT, self.temp(f"zext i1 {self.condition(node)} to i64")
            operand = self.expr(node.operand)[1]
            if isinstance(node.op, ast.USub):
                return INT, self.temp(f"sub i64 0, {operand}") if operand.startswith("%") else str(-int(operand))
            if isinstance(node.op, ast.Invert):
                return INT, self.temp(f"xor i64 {operand}, -1") if operand.startswith("%") else str(~int(operand))
        if isinstance(node, (ast.Compare, ast.BoolOp)):
            return INT, self.temp(f"zext i1 {self.condition(node)} to i64")
        if isinstance(node, ast.Call):
            return self.call(node)
        raise self.refuse(node, f"{type(node).__name__} is not understood")

    def argument(self, node: ast.expr) -> Value:
        """What a function is called with: a value, or another function."""
        if isinstance(node, ast.Name):
            local = self.scope.locals.get(node.id)
            if local is not None and isinstance(local.kind, Function):
                return local.kind, "0"
            if local is None:
                found = self.glob(node.id, node)
                if isinstance(found, FunctionType):
                    return Function(found), "0"
        return self.expr(node)

    def module_of(self, node: ast.expr) -> ModuleType | None:
        if isinstance(node, ast.Name) and node.id not in self.scope.locals:
            found = self.scope.function.__globals__.get(node.id)
            return found if isinstance(found, ModuleType) else None
        return None

    def binary(self, op: ast.operator, a: str, b: str, node: ast.AST) -> str:
        if isinstance(op, (ast.FloorDiv, ast.Mod)):
            return self.divide(isinstance(op, ast.Mod), a, b)
        if type(op) not in _BINARY:
            raise self.refuse(node, f"operator {type(op).__name__}")
        name = _BINARY[type(op)]
        if name == "ashr" and self.scope.function in UNSIGNED:
            name = "lshr"
        return self.add(a, b) if name == "add" else self.temp(f"{name} i64 {a}, {b}")

    def divide(self, modulo: bool, a: str, b: str) -> str:
        """Python's division, towards minus infinity."""
        quotient = self.temp(f"sdiv i64 {a}, {b}")
        rest = self.temp(f"srem i64 {a}, {b}")
        odd = self.temp(f"icmp ne i64 {rest}, 0")
        signs = self.temp(f"icmp slt i64 {self.temp(f'xor i64 {rest}, {b}')}, 0")
        adjust = self.temp(f"and i1 {odd}, {signs}")
        if modulo:
            return self.temp(f"add i64 {rest}, {self.temp(f'select i1 {adjust}, i64 {b}, i64 0')}")
        return self.temp(f"sub i64 {quotient}, {self.temp(f'zext i1 {adjust} to i64')}")

    def condition(self, node: ast.expr) -> str:
        """An i1: compared, combined without evaluating more than Python would, or "not 0"."""
        if isinstance(node, ast.BoolOp):
            return self.short_circuit(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return self.temp(f"xor i1 {self.condition(node.operand)}, true")
        if isinstance(node, ast.Compare):
            operands = [self.expr(node.left)[1], *(self.expr(right)[1] for right in node.comparators)]
            result = ""
            for op, a, b in zip(node.ops, operands, operands[1:], strict=False):
                if type(op) not in _COMPARE:
                    raise self.refuse(node, f"comparison {type(op).__name__}")
                one = self.temp(f"icmp {_COMPARE[type(op)]} i64 {a}, {b}")
                result = self.temp(f"and i1 {result}, {one}") if result else one
            return result
        return self.temp(f"icmp ne i64 {self.expr(node)[1]}, 0")

    def short_circuit(self, node: ast.BoolOp) -> str:
        place = f"%c{len(self.allocas)}"
        self.allocas.append(f"{place} = alloca i1")
        end = self.label("bool")
        for i, part in enumerate(node.values):
            value = self.condition(part)
            self.emit(f"store i1 {value}, ptr {place}")
            if i + 1 < len(node.values):
                following = self.label("next")
                yes, no = (following, end) if isinstance(node.op, ast.And) else (end, following)
                self.emit(f"br i1 {value}, label %{yes}, label %{no}")
                self.emit_label(following)
        self.emit_label(end)
        return self.temp(f"load i1, ptr {place}")

    def call(self, node: ast.Call) -> Value:
        if isinstance(node.func, ast.Attribute) and self.module_of(node.func.value) is None:
            return self.method(node, node.func)
        function = self.called(node.func)
        if function is len:
            kind, operand = self.expr(node.args[0])
            if kind == ANY:
                return INT, "0"
            if not isinstance(kind, List):
                raise self.refuse(node, "len() of what is no list")
            return INT, self.load(self.add(operand, "1"))
        simple = function in (min, max, int, bool)
        arguments = [self.expr(argument) if simple else self.argument(argument) for argument in node.args]
        if function in (min, max):
            result = arguments[0][1]
            for _, other in arguments[1:]:
                test = self.temp(f"icmp {'slt' if function is min else 'sgt'} i64 {other}, {result}")
                result = self.temp(f"select i1 {test}, i64 {other}, i64 {result}")
            return INT, result
        if function in (int, bool):
            return INT, arguments[0][1]
        if function in self.module.intrinsics:
            return self.module.intrinsics[function](self, arguments)
        if not isinstance(function, FunctionType) or inspect.isgeneratorfunction(function):
            raise self.refuse(node, f"call of {getattr(function, '__name__', function)}")
        arguments += self.defaults(function, len(node.args), node)
        name, result_kind = self.module.function(function, [kind for kind, _ in arguments])
        passed = "".join(f", i64 {operand}" for _, operand in arguments)
        return self.module.reference(result_kind or INT, self.temp(f"call i64 {name}(ptr %M, ptr %G{passed})"))

    def called(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            local = self.scope.locals.get(node.id)
            if local is None:
                return self.glob(node.id, node)
            if isinstance(local.kind, Function):
                return local.kind.function
        if isinstance(node, ast.Attribute):
            module = self.module_of(node.value)
            if module is not None:
                return getattr(module, node.attr)
        raise self.refuse(node, "call of what is no function")

    def defaults(self, function: FunctionType, given: int, node: ast.Call) -> list[Value]:
        if node.keywords:
            raise self.refuse(node, "keyword arguments")
        parameters = list(inspect.signature(function).parameters.values())
        return [self.constant(p.default, node) for p in parameters[given:]]

    def method(self, node: ast.Call, func: ast.Attribute) -> Value:
        """A list's append, pop and clear."""
        kind, operand = self.expr(func.value)
        if kind == ANY:
            return ANY, "0"
        if not isinstance(kind, List):
            raise self.refuse(node, f"method '{func.attr}'")
        at = self.add(operand, "1")
        if func.attr == "append":
            value = self.expr(node.args[0])[1]
            length = self.load(at)
            full = self.temp(f"icmp sge i64 {length}, {self.load(self.add(operand, '2'))}")
            no, yes, end = self.label("full"), self.label("room"), self.label("appended")
            self.emit(f"br i1 {full}, label %{no}, label %{yes}")
            self.emit_label(no)
            core = self.module.core
            error, _ = self.slot((Obj(type(core)), str(self.module.layout.address(core))), "error")
            self.store(error, str(engine_core.FULL))
            self.emit(f"br label %{end}")
            self.emit_label(yes)
            self.store(self.add(self.load(operand, fixed=True), length), value)
            self.store(at, self.add(length, "1"))
            self.emit_label(end)
            return INT, "0"
        if func.attr == "pop" and not node.args:
            length = self.temp(f"sub i64 {self.load(at)}, 1")
            self.store(at, length)
            return self.module.reference(
                kind.element, self.load(self.add(self.load(operand, fixed=True), length))
            )
        if func.attr == "clear":
            self.store(at, "0")
            return INT, "0"
        raise self.refuse(node, f"method '{func.attr}' of a list")

    # -- statements ---------------------------------------------------------------------------------------------

    def block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            self.statement(statement)

    def statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Expr):
            if isinstance(node.value, (ast.Yield, ast.YieldFrom)):
                self.wait(node.value)
            elif not isinstance(node.value, ast.Constant):
                self.expr(node.value)
        elif isinstance(node, ast.Assign):
            self.assign(node)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self.put(node.target, self.expr(node.value))
        elif isinstance(node, ast.AugAssign):
            old = self.expr(self.as_load(node.target))[1]
            self.put(node.target, (INT, self.binary(node.op, old, self.expr(node.value)[1], node)))
        elif isinstance(node, ast.If):
            self.if_(node)
        elif isinstance(node, ast.While):
            self.while_(node)
        elif isinstance(node, ast.For):
            self.for_(node)
        elif isinstance(node, ast.Return):
            self.return_(node)
        elif isinstance(node, ast.Break):
            self.emit(f"br label %{self.scope.loops[-1][1]}")
        elif isinstance(node, ast.Continue):
            self.emit(f"br label %{self.scope.loops[-1][0]}")
        elif not isinstance(node, (ast.Pass, ast.Assert)):
            raise self.refuse(node, f"{type(node).__name__} is not understood")

    def as_load(self, target: ast.expr) -> ast.expr:
        copy = ast.parse(ast.unparse(target), mode="eval").body
        return ast.copy_location(copy, target)

    def assign(self, node: ast.Assign) -> None:
        if isinstance(node.value, (ast.Yield, ast.YieldFrom)):
            value = self.wait(node.value)
        else:
            value = self.expr(node.value)
        for target in node.targets:
            self.put(target, value)

    def put(self, target: ast.expr, value: Value) -> None:
        kind, operand = value
        if isinstance(target, ast.Name):
            local = self.declare(target.id, kind)
            if local.kind != kind and not {local.kind, kind} <= {INT, ANY}:
                raise self.refuse(target, f"'{target.id}' holds a {local.kind} and then a {kind}")
            self.write(local, operand)
        elif isinstance(target, ast.Attribute):
            at, found = self.slot(self.expr(target.value), target.attr, target)
            if not isinstance(found, (Int, Unknown)):
                raise self.refuse(target, f"'{target.attr}' is set to another object")
            self.store(at, operand)
        elif isinstance(target, ast.Subscript):
            self.set_item(self.expr(target.value), self.index(target), operand, target)
        else:
            raise self.refuse(target, "this target of an assignment")

    def index(self, node: ast.Subscript) -> str:
        """An index; Python counts one below 0 from the end, this code would look in front of the list."""
        operand = self.expr(node.slice)[1]
        if operand.startswith("-"):
            raise self.refuse(node, f"the index {operand}; write it from the front, as len(...) - {operand[1:]}")
        return operand

    def if_(self, node: ast.If) -> None:
        then, other, end = self.label("then"), self.label("else"), self.label("end")
        self.emit(f"br i1 {self.condition(node.test)}, label %{then}, label %{other if node.orelse else end}")
        self.emit_label(then)
        self.block(node.body)
        self.emit(f"br label %{end}")
        if node.orelse:
            self.emit_label(other)
            self.block(node.orelse)
        self.emit_label(end)

    def while_(self, node: ast.While) -> None:
        head, body, end = self.label("while"), self.label("do"), self.label("done")
        self.emit_label(head)
        if isinstance(node.test, ast.Constant) and node.test.value:
            self.emit(f"br label %{body}")
        else:
            self.emit(f"br i1 {self.condition(node.test)}, label %{body}, label %{end}")
        self.emit_label(body)
        self.scope.loops.append((head, end))
        self.block(node.body)
        self.scope.loops.pop()
        self.emit(f"br label %{head}")
        self.emit_label(end)

    def for_(self, node: ast.For) -> None:
        if not (isinstance(node.iter, ast.Call) and isinstance(node.target, ast.Name)):
            raise self.refuse(node, "a loop over anything but range()")
        if self.called(node.iter.func) is not range or len(node.iter.args) > 2:
            raise self.refuse(node, "a loop over anything but range() of one or two numbers")
        bounds = [self.expr(argument)[1] for argument in node.iter.args]
        counter = self.declare(f"{node.target.id} {node.lineno}", INT)
        limit = self.declare(f"limit {node.lineno}", INT)
        self.write(counter, bounds[0] if len(bounds) == 2 else "0")
        self.write(limit, bounds[-1])
        head, body, step, end = (self.label(x) for x in ("for", "do", "step", "done"))
        self.emit_label(head)
        now = self.read(counter)[1]
        test = self.temp(f"icmp slt i64 {now}, {self.read(limit)[1]}")
        self.emit(f"br i1 {test}, label %{body}, label %{end}")
        self.emit_label(body)
        self.put(node.target, (INT, now))
        self.scope.loops.append((step, end))
        self.block(node.body)
        self.scope.loops.pop()
        self.emit_label(step)
        self.write(counter, self.add(self.read(counter)[1], "1"))
        self.emit(f"br label %{head}")
        self.emit_label(end)

    def return_(self, node: ast.Return) -> None:
        raise NotImplementedError

    def wait(self, node: ast.Yield | ast.YieldFrom) -> Value:
        raise self.refuse(node, "a yield outside a process")


class _Plain(_Emitter):
    """A plain function."""

    def __init__(
        self, module: Module, function: Any, kinds: list[Kind], name: str, result: list[Kind | None]
    ) -> None:
        super().__init__(module)
        self.name = name
        self.kinds = kinds
        self.result = result
        self.scope = Scope(function, None)

    def text(self) -> str:
        definition, _, _ = _source(self.scope.function)
        parameters = [argument.arg for argument in definition.args.args]
        header = ", ".join(f"i64 %p{i}" for i in range(len(parameters)))
        for i, (name, kind) in enumerate(zip(parameters, self.kinds, strict=True)):
            self.write(self.declare(name, kind), f"%p{i}")
        self.block(_body(definition))
        self.emit("ret i64 0")
        separator = ", " if header else ""
        signature = f"(ptr noalias %M, ptr noalias %G{separator}{header})"
        return f"define internal i64 {self.name}{signature} nounwind {{\n{self.body()}}}"

    def return_(self, node: ast.Return) -> None:
        if node.value is None:
            self.emit("ret i64 0")
        else:
            kind, operand = self.expr(node.value)
            self.result[0] = kind
            self.emit(f"ret i64 {operand}")
        self.lines.append(f"{self.label('after')}:")
        self.open = True


class _Process(_Emitter):
    """A process: its own code and its helpers', as one state machine."""

    def __init__(self, module: Module, function: Any, kinds: list[Kind], name: str) -> None:
        super().__init__(module)
        self.name = name
        self.words = 1
        self.pcs = ["start"]
        self.helpers: dict[Any, _Helper] = {}
        self.pending: list[_Helper] = []
        self.root = (function, kinds)

    def text(self) -> str:
        function, kinds = self.root
        definition, _, _ = _source(function)
        self.scope = Scope(function, "root")
        for argument, kind in zip(definition.args.args, kinds, strict=True):
            self.declare(argument.arg, kind)
        self.lines.append("start:")
        self.block(_body(definition))
        self.store("%F", "-1")
        self.emit("ret i64 1")
        while self.pending:
            self.write_helper(self.pending.pop(0))
        cases = " ".join(f"i64 {number}, label %{label}" for number, label in enumerate(self.pcs))
        head: list[str | Callable[[], str]] = [
            "  %pcw = getelementptr i64, ptr %M, i64 %F",
            "  %pc = load i64, ptr %pcw, align 8",
            f"  switch i64 %pc, label %over [ {cases} ]",
            "over:",
            "  ret i64 1",
        ]
        self.lines = head + self.lines
        signature = "(ptr noalias %M, ptr noalias %G, i64 %F, i64 %context)"
        return f"define internal i64 {self.name}{signature} nounwind {{\n{self.body()}}}"

    # Locals stand in the frame.

    def declare(self, name: str, kind: Kind) -> Local:
        if name not in self.scope.locals:
            self.scope.locals[name] = Local(kind, self.words)
            self.words += 1
        return self.scope.locals[name]

    def read(self, local: Local) -> Value:
        if isinstance(local.kind, Obj) and local.kind.cls in self.module.single:
            return local.kind, str(self.module.single[local.kind.cls])
        return local.kind, self.load(self.add("%F", str(local.place)))

    def write(self, local: Local, value: str) -> None:
        self.store(self.add("%F", str(local.place)), value)

    # Waiting, and helpers.

    def wait(self, node: ast.Yield | ast.YieldFrom) -> Value:
        if isinstance(node, ast.Yield):
            return self.effect(node)
        call = node.value
        if not isinstance(call, ast.Call):
            raise self.refuse(node, "yield from anything but a call")
        function = self.called(call.func)
        if not inspect.isgeneratorfunction(function):
            raise self.refuse(node, "yield from what is no helper")
        arguments = [self.argument(argument) for argument in call.args]
        arguments += self.defaults(function, len(call.args), call)
        helper = self.helper(function, [kind for kind, _ in arguments])
        for local, (_, operand) in zip(helper.parameters, arguments, strict=True):
            self.write(local, operand)
        back = self.label("back")
        self.write(helper.back, str(len(helper.returns)))
        helper.returns.append(back)
        self.emit(f"br label %{helper.label}")
        self.lines.append(f"{back}:")
        self.open = True
        if helper.result is None:
            return INT, "0"
        return self.read(helper.result)

    def effect(self, node: ast.Yield) -> Value:
        call = node.value
        if not isinstance(call, ast.Call):
            raise self.refuse(node, "yield of what is no effect")
        function = self.called(call.func)
        if getattr(function, "__module__", "") != effects.__name__:
            raise self.refuse(node, "yield of what is no effect")
        given = [self.expr(argument) for argument in call.args]
        given += self.defaults(function, len(call.args), call)
        definition, _, _ = _source(function)
        bound = {argument.arg: operand for argument, (_, operand) in zip(definition.args.args, given, strict=True)}
        (statement,) = _body(definition)
        assert isinstance(statement, ast.Return)
        assert isinstance(statement.value, ast.Tuple)
        parts = []
        for element in statement.value.elts:
            if isinstance(element, ast.Name) and element.id in bound:
                parts.append(bound[element.id])
            elif isinstance(element, ast.Name):
                parts.append(str(int(getattr(effects, element.id))))
            else:
                assert isinstance(element, ast.Constant)
                parts.append(str(element.value))
        core = self.module.core
        perform = PERFORM[int(parts[0])]
        name, _ = self.module.function(perform, [Obj(type(core)), INT, INT, INT, INT])
        place = self.module.layout.address(core)
        operands = ", ".join(f"i64 {part}" for part in parts[1:])
        waits = self.temp(f"call i64 {name}(ptr %M, ptr %G, i64 {place}, i64 %context, {operands})")
        pause, on = self.label("pause"), self.label("on")
        self.emit(f"br i1 {self.temp(f'icmp ne i64 {waits}, 0')}, label %{pause}, label %{on}")
        self.emit_label(pause)
        self.store("%F", str(len(self.pcs)))
        self.emit("ret i64 0")
        self.pcs.append(on)
        self.emit_label(on)
        return INT, "0"

    def helper(self, function: FunctionType, kinds: list[Kind]) -> _Helper:
        key = (function, tuple(kinds))
        if key not in self.helpers:
            scope = Scope(function, key)
            outer, self.scope = self.scope, scope
            definition, _, _ = _source(function)
            parameters = [
                self.declare(argument.arg, kind)
                for argument, kind in zip(definition.args.args, kinds, strict=True)
            ]
            # A helper returns a number: the row of a request, a count, a truth value.
            back = self.declare("back ", INT)
            result = self.declare("result ", INT) if self.returns(function) else None
            self.scope = outer
            made = _Helper(scope, self.label("helper"), parameters, back, result)
            self.helpers[key] = made
            self.pending.append(made)
        return self.helpers[key]

    def returns(self, function: FunctionType) -> bool:
        last = _body(_source(function)[0])[-1]
        return isinstance(last, ast.Return) and last.value is not None

    def write_helper(self, helper: _Helper) -> None:
        self.scope = helper.scope
        self.lines.append(f"{helper.label}:")
        self.open = True
        self.block(_body(_source(helper.scope.function)[0]))
        to = self.read(helper.back)[1]
        end = self.label("return")
        self.emit_label(end)
        self.lines.append(lambda: helper.jump_back(to))
        self.open = False

    def return_(self, node: ast.Return) -> None:
        helper = self.helpers.get(self.scope.key)
        if helper is None or node.value is None or helper.result is None:
            raise self.refuse(node, "a return in a process")
        self.write(helper.result, self.expr(node.value)[1])


@dataclass
class _Helper:
    """A helper of one process: where its code begins, where its arguments and result stand, who calls it."""

    scope: Scope
    label: str
    parameters: list[Local]
    back: Local
    result: Local | None
    returns: list[str] = field(default_factory=list)

    def jump_back(self, to: str) -> str:
        """The jump to the caller; all callers are known only when everything else is written."""
        cases = " ".join(f"i64 {number}, label %{label}" for number, label in enumerate(self.returns))
        return f"  switch i64 {to}, label %over [ {cases} ]"

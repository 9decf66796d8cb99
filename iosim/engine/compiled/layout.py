"""One flat memory for everything that models work on: objects and lists of whole numbers, at fixed places.

The memory is an array of 64-bit words. An object is a run of words, one for each attribute that holds a number, a
truth value, another object or a list; a reference is the number of the first word. A list is three words (where its
elements begin, how many there are, how many fit) and its elements elsewhere, so that it can be moved when it must grow.
Guest memory stays what it is, bytes; a reference to one of its views names the width.

Attributes of other kinds (text, dictionaries) have no place: a model that uses one on its hot path is refused when it
is translated, with the name of the attribute.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

LIST_WORDS: Final = 3
SHORTEST: Final = 128
"""Room a list has at least: for what is appended to lists that begin empty (a vhost batch has up to 65)."""
VIEWS: Final = {"B": 8, "H": 16, "I": 32, "Q": 64}
"""Formats of the views of guest memory, and their widths."""


@dataclass(frozen=True)
class Int:
    """A number or a truth value."""


@dataclass(frozen=True)
class Obj:
    """A reference to an object of a class."""

    cls: type


@dataclass(frozen=True)
class List:
    """A reference to a list of numbers or objects."""

    element: Int | Obj | Unknown


@dataclass(frozen=True)
class View:
    """A view of guest memory, ``bits`` wide."""

    bits: int


@dataclass(frozen=True)
class Unknown:
    """What a list without elements would hold: a number, or an object that this structure has none of.

    Code that would use it as an object is never reached, and is translated to something harmless.
    """


@dataclass(frozen=True)
class Function:
    """A function that another one is given: which, is known when that is translated, and it takes no place."""

    function: FunctionType


Kind: TypeAlias = Int | Obj | List | View | Unknown | Function
INT: Final = Int()
ANY: Final = Unknown()
SCRATCH: Final = 0
"""A word that belongs to nothing."""


def names_of(obj: Any) -> list[str]:
    """Return the names of an object's attributes, in the order of its class."""
    found: list[str] = []
    for cls in type(obj).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        found += [slots] if isinstance(slots, str) else slots
    return [*found, *getattr(obj, "__dict__", {})]


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _plain(obj: Any) -> bool:
    """Whether an object is state: of a Python class that is not a container, a function or text."""
    module = type(obj).__module__
    return module not in ("builtins", "numpy", "mappingproxy", "_thread") and not callable(obj) and (
        hasattr(type(obj), "__slots__") or hasattr(obj, "__dict__")
    )


class Layout:
    """Where everything is.

    Args:
        roots: The objects from which all others are reached.
        capacities: Room for lists that grow, by (class name, attribute); others keep the room they have.
        opaque: Classes that are not looked into.
    """

    def __init__(self, roots: list[Any], capacities: Mapping[tuple[str, str], int], opaque: tuple[type, ...]) -> None:
        self.capacities = capacities
        self.opaque = opaque
        self.slots: dict[type, dict[str, tuple[int, Kind]]] = {}
        self.objects: dict[int, int] = {}
        self.guest: Any = None
        self.words: list[int] = [0] * 8
        self.lists: list[tuple[int, Any, int]] = []
        self.found: list[Any] = []
        self._seen: set[int] = set()
        for root in roots:
            self._discover(root)
        self.single = self._single()
        # Objects that are the only one of their class stand first, in an order of their own: code that knows their
        # places is the same however many there are of the others (queue pairs, vCPUs).
        for obj in sorted(self.single.values(), key=lambda obj: _name(type(obj))):
            self._place(obj)
        for obj in self.found:
            if type(obj) not in self.single:
                self._place(obj)
        for obj in self.found:
            self._fill(obj)

    # -- what there is ------------------------------------------------------------------------------------------

    def _discover(self, obj: Any) -> None:
        todo = [obj]
        while todo:
            obj = todo.pop()
            if id(obj) in self._seen or isinstance(obj, self.opaque) or not _plain(obj):
                continue
            self._seen.add(id(obj))
            self.found.append(obj)
            slots = self.slots.setdefault(type(obj), {})
            for name in names_of(obj):
                kind = self._kind(obj, name)
                if isinstance(kind, View):
                    # Whatever has views is guest memory, so that no view is without a buffer to look into.
                    if self.guest is not None and self.guest is not obj:
                        raise NotImplementedError("one guest memory is all the compiled engine knows")
                    self.guest = obj
                if kind is not None and name not in slots:
                    slots[name] = (len(slots), kind)
                elif kind is not None and slots[name][1] == List(ANY):
                    slots[name] = (slots[name][0], kind)
                if isinstance(kind, Obj):
                    todo.append(getattr(obj, name))
                elif isinstance(kind, List) and isinstance(kind.element, Obj):
                    todo += getattr(obj, name)

    def _kind(self, obj: Any, name: str) -> Kind | None:
        value = getattr(obj, name, None)
        if isinstance(value, memoryview) and value.format in VIEWS and value.obj is getattr(obj, "buffer", None):
            return View(VIEWS[value.format])
        if isinstance(value, (bool, int, np.integer)):
            return INT
        if isinstance(value, memoryview) and value.format in ("l", "q"):
            return List(INT)
        if isinstance(value, list):
            if not value:
                return List(ANY)
            # Lists hold one kind of thing: the first tells.
            if isinstance(value[0], (bool, int)):
                return List(INT)
            if _plain(value[0]) and not isinstance(value[0], self.opaque):
                return List(Obj(type(value[0])))
            return None
        if value is not None and _plain(value) and not isinstance(value, self.opaque):
            return Obj(type(value))
        return None

    def _single(self) -> dict[type, Any]:
        """Classes of which there is one object, with the object."""
        count: dict[type, list[Any]] = {}
        for obj in self.found:
            count.setdefault(type(obj), []).append(obj)
        return {cls: objects[0] for cls, objects in count.items() if len(objects) == 1}

    # -- where it is --------------------------------------------------------------------------------------------

    def _place(self, obj: Any) -> None:
        self.objects[id(obj)] = len(self.words)
        self.words += [0] * max(1, len(self.slots[type(obj)]))

    def _fill(self, obj: Any) -> None:
        at = self.objects[id(obj)]
        for name, (slot, kind) in self.slots[type(obj)].items():
            value = getattr(obj, name, None)
            if isinstance(kind, Int):
                self.words[at + slot] = int(value) if value is not None else 0
            elif isinstance(kind, Obj):
                self.words[at + slot] = self.objects.get(id(value), 0)
            elif isinstance(kind, List):
                items = [] if value is None else value
                if isinstance(kind.element, Obj):
                    items = [self.objects[id(item)] for item in items]
                room = self.capacities.get((type(obj).__name__, name), 0)
                self.words[at + slot] = self._new_list(items, max(room, len(items), SHORTEST))

    def _new_list(self, items: Any, room: int) -> int:
        header = len(self.words)
        self.words += [0, len(items), room]
        self.lists.append((header, items, room))
        return header

    def reserve(self, words: int) -> int:
        """Return the place of so many more words, zeroed; lists' elements come after all of them."""
        at = len(self.words)
        self.words += [0] * words
        return at

    # -- for those who look at it -------------------------------------------------------------------------------

    def address(self, obj: Any) -> int:
        """Return an object's first word."""
        return self.objects[id(obj)]

    def attribute(self, obj: Any, name: str) -> int:
        """Return the word of an attribute."""
        return self.objects[id(obj)] + self.slots[type(obj)][name][0]

    def structure(self) -> Iterator[str]:
        """Describe every class, for the key of the cache: the same text means the same translation."""
        for cls, slots in sorted(self.slots.items(), key=lambda item: _name(item[0])):
            yield _name(cls) + (f" at {self.address(self.single[cls])}" if cls in self.single else "")
            for name, (slot, kind) in slots.items():
                yield f" {slot} {name} {kind}"


class Memory:
    """The words of a layout while a run uses them.

    Attributes:
        words: The array; replaced by a larger one when a list grows.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        at = len(layout.words)
        total = at + sum(room for _, _, room in layout.lists)
        self.words: npt.NDArray[np.int64] = np.zeros(total, dtype=np.int64)
        self.words[: len(layout.words)] = layout.words
        for header, items, room in layout.lists:
            self.words[header] = at
            # Queues that nothing has been put into yet are long lists of zeros, which stand there already.
            if isinstance(items, memoryview) or any(items):
                self.words[at : at + len(items)] = items
            at += room

    def get(self, obj: Any, name: str) -> int:
        """Return the number in an attribute."""
        return int(self.words[self.layout.attribute(obj, name)])

    def put(self, obj: Any, name: str, value: int) -> None:
        """Set the number in an attribute."""
        self.words[self.layout.attribute(obj, name)] = value

    def items(self, obj: Any, name: str) -> npt.NDArray[np.int64]:
        """Return a list's elements, as a view of the memory. Shape (length,)."""
        header = self.words[self.layout.attribute(obj, name)]
        begin, length = self.words[header], self.words[header + 1]
        return self.words[begin : begin + length]

    def grow(self, lists: list[tuple[Any, str, int]]) -> None:
        """Move lists, each an object's attribute, to where there is room for so many elements; new ones are 0."""
        old = self.words
        at = len(old)
        self.words = np.zeros(at + sum(room for _, _, room in lists), dtype=np.int64)
        self.words[: len(old)] = old
        for obj, name, room in lists:
            header = int(self.words[self.layout.attribute(obj, name)])
            begin, length = int(old[header]), int(old[header + 1])
            self.words[at : at + length] = old[begin : begin + length]
            self.words[header] = at
            self.words[header + 2] = room
            at += room

    def lengthen(self, obj: Any, name: str, new: int) -> None:
        """Make all of a list's room part of it; elements that were not are ``new``."""
        header = int(self.words[self.layout.attribute(obj, name)])
        begin, length, room = (int(word) for word in self.words[header : header + 3])
        self.words[begin + length : begin + room] = new
        self.words[header + 1] = room

    def fetch(self, obj: Any, names: list[str]) -> None:
        """Copy numbers and lists of numbers back into the Python object."""
        for name in names:
            kind = self.layout.slots[type(obj)][name][1]
            if isinstance(kind, Int):
                old = getattr(obj, name)
                value = self.get(obj, name)
                setattr(obj, name, bool(value) if isinstance(old, bool) else value)
            else:
                getattr(obj, name)[:] = self.items(obj, name).tolist()

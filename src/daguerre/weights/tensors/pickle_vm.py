"""A stack machine for pickles that builds only plain data.

A pickle is a program. Here its instructions build containers, numbers and strings, and the few constructors that torch.save writes
for a tensor yield a description of it (storage, offset, shape, strides). A global name is looked up in a fixed table and never
imported; no instruction calls anything. Instructions as in the standard library's `pickletools`.
"""

import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import IO, Any

import torch

MAX_PICKLE_BYTES = 64 << 20  # SD 1's object graph with its optimizer takes about 1 MB
MAX_OPCODES = 2_000_000
MAX_DIMENSIONS = 16
MAX_ELEMENTS = 1 << 48

STORAGE_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16, "CharStorage": torch.int8,
    "ByteStorage": torch.uint8, "BoolStorage": torch.bool, "UntypedStorage": torch.uint8,
}  # fmt: skip
# Newer dtypes, which have no storage class: the tensor names its dtype, and its storage is untyped.
UNTYPED_DTYPES = {
    str(dtype): dtype
    for dtype in (
        torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.uint16, torch.uint32, torch.uint64,
    )
}  # fmt: skip
REBUILD_TENSOR = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
REBUILD_UNTYPED_TENSOR = "torch._utils._rebuild_tensor_v3"
REBUILD_PARAMETER = {"torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter"}
PARAMETER_DICT = "torch.nn.modules.container.ParameterDict"  # in the first files of textual-inversion embeddings
# Names that trainers store next to the tensors. Each becomes an inert mark; none is imported, and what is made from one is a mark too.
INERT_NAMES = {
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("set", "frozenset", "dict", "list", "tuple", "int", "float",
                                                                                "bool", "str", "bytes", "bytearray", "complex", "slice")),
    "collections.OrderedDict", "collections.defaultdict", "collections.Counter", "collections.deque",
    "_codecs.encode", "argparse.Namespace", "typing.Any", "copyreg._reconstructor", "builtins.object", "__builtin__.object",
    "torch.Size", "torch.device", "torch.Tensor", *(str(dtype) for dtype in STORAGE_DTYPES.values()),
    *UNTYPED_DTYPES, REBUILD_UNTYPED_TENSOR,
}  # fmt: skip
INERT_PACKAGES = (
    "pytorch_lightning",
    "lightning",
    "lightning_fabric",
    "omegaconf",
    "numpy",
    "pathlib",
    "torch.optim",
    "torch.torch_version",
)


@dataclass(frozen=True)
class Name:
    """A global that the pickle names; a mark, never the thing itself."""

    path: str


@dataclass(frozen=True, eq=False)
class Mark:
    """Something the pickle would have built that is no tensor, number, string or container."""


class ParameterTable(dict):
    """What a ParameterDict would have held; its tensors follow as the attribute `_parameters`."""


@dataclass(frozen=True)
class StorageRef:
    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class TensorRef:
    """A tensor as the pickle describes it, in elements of its storage."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype


class RefusedError(Exception):
    """The pickle asks for something a file of tensors has no need of."""


class Bounded:
    """The part of a file that a pickle may occupy. Refuses a length field that points past the end before memory is reserved for it."""

    def __init__(self, file: IO[bytes], limit: int):
        self.file, self.left = file, min(limit, MAX_PICKLE_BYTES)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise RefusedError("it ends early, or claims more bytes than there are")
        self.left -= size
        return self.file.read(size)

    def readline(self) -> bytes:
        line = self.file.readline(self.left)
        self.left -= len(line)
        return line

    def tell(self) -> int:
        return self.file.tell()


def _named(path: str) -> Name:
    package, _, name = path.rpartition(".")
    storage = package in ("torch", "torch.cuda", "torch.storage") and name in STORAGE_DTYPES
    inert = path in INERT_NAMES or any(path.startswith(f"{allowed}.") for allowed in INERT_PACKAGES)
    if storage or inert or path in REBUILD_TENSOR or path in REBUILD_PARAMETER or path == PARAMETER_DICT:
        return Name(path)
    raise RefusedError(f"it names {path[:80]!r}, which no tensor needs")


def _integers(*values: object) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_ELEMENTS for value in values)


def _rebuilt(args: tuple) -> TensorRef:
    storage, offset, shape, strides = args[:4] if len(args) >= 4 else (None,) * 4
    if not isinstance(storage, StorageRef) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise RefusedError("it describes a tensor without storage, shape or strides")
    if not len(shape) == len(strides) <= MAX_DIMENSIONS or not isinstance(offset, int) or not _integers(offset, *shape, *strides):
        raise RefusedError("it describes a tensor whose shape, strides or offset are not whole numbers of 0 or more")
    end = offset + 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) if prod(shape) else offset
    if prod(n or 1 for n in shape) >= MAX_ELEMENTS:  # torch reckons with empty shapes, too
        raise RefusedError("it describes a tensor whose shape is too large")
    if max(end, prod(shape)) > storage.numel:  # also refuses a small storage stretched over a huge shape
        raise RefusedError(f"it describes a tensor of shape {list(shape)} on a storage of {storage.numel} elements")
    return TensorRef(storage, offset, shape, strides)


def _with_dtype(args: tuple) -> tuple:
    """Arguments (storage of bytes, offset, shape, strides, requires_grad, hooks, dtype, …) with the storage in elements of the dtype."""
    match args:
        case (StorageRef(key, torch.uint8, size), *rest) if len(rest) >= 6 and isinstance(rest[5], Name) and rest[5].path in UNTYPED_DTYPES:
            dtype = UNTYPED_DTYPES[rest[5].path]
            return StorageRef(key, dtype, size // dtype.itemsize), *rest
    raise RefusedError("it describes a tensor of an unknown dtype")


def _called(function: object, args: object) -> object:
    """What REDUCE and NEWOBJ yield. The only results are descriptions, containers and marks."""
    if not isinstance(function, Name) or not isinstance(args, tuple):
        raise RefusedError("it calls something that is not a name")
    if function.path in REBUILD_TENSOR:
        return _rebuilt(args)
    if function.path == REBUILD_UNTYPED_TENSOR:
        return _rebuilt(_with_dtype(args))
    if function.path in REBUILD_PARAMETER and args:
        return args[0]
    if function.path == PARAMETER_DICT:
        return ParameterTable()
    if function.path == "torch.Size" and args and isinstance(args[0], list | tuple):
        return tuple(args[0])
    if function.path == "collections.OrderedDict":
        pairs = args[0] if args and isinstance(args[0], list) else []
        return {_key(pair[0]): pair[1] for pair in pairs if isinstance(pair, list | tuple) and len(pair) == 2}
    return Mark()


def _stored(pid: object) -> StorageRef:
    """The storage a persistent id names: ("storage", class, key, device, elements), in the older container with a view, always None."""
    match pid:
        case ("storage", Name(path), str(key), _, int(numel)) | ("storage", Name(path), str(key), _, int(numel), None):
            dtype = STORAGE_DTYPES.get(path.rpartition(".")[2])
            if dtype is not None and _integers(numel):
                return StorageRef(key, dtype, numel)
    raise RefusedError("it holds a storage of an unknown kind")


def _key(key: object) -> object:
    # Other keys are never looked up; hashing a deep tuple would exhaust the C stack.
    return key if key is None or isinstance(key, str | int | float | bytes | Name) else Mark()


@dataclass
class Machine:
    """The stack machine: `run` interprets one pickle and returns its object."""

    stack: list = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, object] = field(default_factory=dict)
    storages: dict[str, StorageRef] = field(default_factory=dict)

    def run(self, stream: Bounded) -> object:
        try:
            for count, (opcode, arg, _) in enumerate(pickletools.genops(stream)):  # pyright: ignore[reportArgumentType]
                if count > MAX_OPCODES:
                    raise RefusedError(f"it has more than {MAX_OPCODES} instructions")
                if opcode.name == "STOP":
                    return self.stack[-1]
                step = STEPS.get(opcode.name)
                if step is None:
                    raise RefusedError(f"it uses the instruction {opcode.name}, which no tensor needs")
                step(self, arg)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error, OverflowError) as error:
            raise RefusedError(f"it is no well-formed pickle ({error})") from error
        raise RefusedError("it has no end")

    def pop_mark(self) -> list:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def pop(self, count: int) -> list:
        if count > len(self.stack) - (self.marks[-1] if self.marks else 0):
            raise IndexError("stack underflow")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def push_mark(self, _: object) -> None:
        self.marks.append(len(self.stack))

    def extend(self, items: list) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Mark):
            raise RefusedError("it appends to something that is no list")

    def update(self, items: list) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update((_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True))
        elif not isinstance(target, Mark):
            raise RefusedError("it sets items of something that is no dictionary")

    def named(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise RefusedError("it names a global by something that is no string")
        self.stack.append(_named(f"{module}.{name}"))

    def called(self, count: int) -> None:
        function, args, *keywords = self.pop(count)
        if keywords and keywords != [{}]:
            raise RefusedError("it calls with keyword arguments")
        self.stack.append(_called(function, args))

    def set_attributes(self, attributes: object) -> None:
        """Drop the attributes of an object that is only a mark here; those of a ParameterDict hold its tensors."""
        target = self.stack[-1]
        if isinstance(target, ParameterTable) and isinstance(attributes, dict) and isinstance(attributes.get("_parameters"), dict):
            target.update(attributes["_parameters"])

    def push_storage(self, _: object) -> None:
        pid = self.pop(1)[0]
        if isinstance(pid, tuple) and pid[:2] == ("module", Name(PARAMETER_DICT)):  # the older container stores its source, too
            self.stack.append(pid[1])
            return
        ref = _stored(pid)
        if self.storages.setdefault(ref.key, ref) != ref:
            raise RefusedError("it describes one storage in two ways")
        self.stack.append(ref)

    def push_global(self, arg: str) -> None:
        module, _, name = arg.partition(" ")
        self.named(module, name)


def _pairs(items: list) -> dict:
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


# One step per instruction a file of tensors may use: (machine, argument) -> None. What is missing here is refused: INST, OBJ, PERSID,
# EXT1/2/4, NEXT_BUFFER, READONLY_BUFFER.
STEPS: dict[str, Callable[[Machine, Any], object]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, arg: None),
    **dict.fromkeys(
        ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING",
         "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        lambda m, arg: m.stack.append(arg)),
    "NONE": lambda m, _: m.stack.append(None),
    "NEWTRUE": lambda m, _: m.stack.append(True),
    "NEWFALSE": lambda m, _: m.stack.append(False),
    "MARK": Machine.push_mark,
    "POP": lambda m, _: m.pop(1) if not m.marks or len(m.stack) > m.marks[-1] else m.pop_mark(),
    "POP_MARK": lambda m, _: m.pop_mark(),
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "EMPTY_SET": lambda m, _: m.stack.append([]),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.pop_mark())),
    "TUPLE1": lambda m, _: m.stack.append(tuple(m.pop(1))),
    "TUPLE2": lambda m, _: m.stack.append(tuple(m.pop(2))),
    "TUPLE3": lambda m, _: m.stack.append(tuple(m.pop(3))),
    "LIST": lambda m, _: m.stack.append(m.pop_mark()),
    "FROZENSET": lambda m, _: m.stack.append(m.pop_mark()),
    "DICT": lambda m, _: m.stack.append(_pairs(m.pop_mark())),
    "APPEND": lambda m, _: m.extend(m.pop(1)),
    "APPENDS": lambda m, _: m.extend(m.pop_mark()),
    "ADDITEMS": lambda m, _: m.extend(m.pop_mark()),
    "SETITEM": lambda m, _: m.update(m.pop(2)),
    "SETITEMS": lambda m, _: m.update(m.pop_mark()),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, arg: m.stack.append(m.memo[int(arg)])),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda m, arg: m.memo.__setitem__(int(arg), m.stack[-1])),
    "MEMOIZE": lambda m, _: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    "GLOBAL": Machine.push_global,
    "STACK_GLOBAL": lambda m, _: m.named(*m.pop(2)),
    "REDUCE": lambda m, _: m.called(2),
    "NEWOBJ": lambda m, _: m.called(2),
    "NEWOBJ_EX": lambda m, _: m.called(3),
    "BUILD": lambda m, _: m.set_attributes(m.pop(1)[0]),
    "BINPERSID": Machine.push_storage,
}  # fmt: skip

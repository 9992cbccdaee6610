"""libsemkv through cffi, by the text of semkv.h itself: there is no second declaration to keep true.

`lib` has the functions, `ffi` the types. Names and docs are the header's; `check` turns a status
into an exception that carries the library's text.
"""
import functools
import os
import pathlib
import re
import struct

import cffi

_PACKAGE = pathlib.Path(__file__).resolve().parent


class SemkvError(RuntimeError):
    """A call of the library failed; `code` is one of the header's SEMKV_* status codes."""

    def __init__(self, code, name, text):
        super().__init__(f"{name}: {text}")
        self.code = code


def _declarations(header):
    """The header's declarations as cffi reads them: no preprocessor, no export marks."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.S)
    text = re.sub(r"#ifdef __cplusplus.*?#endif", "", text, flags=re.S)
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    return text.replace("SEMKV_EXPORT ", "")


def _constants(header):
    return {name: int(value)
            for name, value in re.findall(r"#define (SEMKV_[A-Z_]+) (\d+)\n", header)}


def _find(names, what):
    for path in names:
        if path.exists():
            return path
    raise ImportError(f"{what} not found; looked for " + ", ".join(str(p) for p in names))


def _load():
    root = _PACKAGE.parent.parent  # of a source tree
    header_path = _find([_PACKAGE / "semkv.h", root / "include" / "semkv" / "semkv.h"], "semkv.h")
    if "SEMKV_LIBRARY" in os.environ:
        candidates = [pathlib.Path(os.environ["SEMKV_LIBRARY"])]
    else:
        candidates = [_PACKAGE / "lib" / "libsemkv.so",
                      root / "build" / "release" / "csrc" / "api" / "libsemkv.so"]
    library_path = _find(candidates, "libsemkv.so")
    header = header_path.read_text()
    declared = cffi.FFI()
    declared.cdef(_declarations(header))
    try:
        library = declared.dlopen(str(library_path))
    except OSError as error:
        raise ImportError(f"cannot load {library_path}: {error}") from error
    wanted = _constants(header)["SEMKV_ABI_VERSION"]
    found = library.semkv_abi_version()
    if found != wanted:
        raise ImportError(f"{library_path} has ABI version {found}, {header_path} version {wanted}")
    return declared, library, str(library_path)


ffi, lib, LIBRARY_PATH = _load()


def check(status):
    """Raises SemkvError unless `status` is SEMKV_OK."""
    if status != lib.SEMKV_OK:
        raise SemkvError(status, ffi.string(lib.semkv_status_name(status)).decode(),
                         ffi.string(lib.semkv_last_error()).decode())


def new(name):
    """A zeroed struct of the header with its struct_size set."""
    pointer = ffi.new(f"{name} *")
    pointer.struct_size = ffi.sizeof(name)
    return pointer


def packer(pointer, *names):
    """A function that sets these neighbouring fields of a struct, given in the header's order, in
    one call: setting them one by one takes longer than a decode step has. Addresses are ints."""
    fields = dict(ffi.typeof(pointer).item.fields)
    codes = {"pointer": "q", "int64_t": "q", "float": "f"}
    kinds = [fields[name].type for name in names]
    layout = struct.Struct("=" + "".join(
        codes["pointer" if kind.kind == "pointer" else kind.cname] for kind in kinds))
    start = fields[names[0]].offset
    offsets = [fields[name].offset - start for name in names]
    expected = [sum(map(ffi.sizeof, kinds[:i])) for i in range(len(kinds))]
    if offsets != expected:
        raise TypeError(f"fields {', '.join(names)} are at {offsets}, must be at {expected}")
    return functools.partial(layout.pack_into, ffi.buffer(pointer), start)

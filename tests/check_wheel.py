"""Install wheel and sdist, each where this environment's packages are seen, and use them from an empty folder."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
USE = """
import inflate3d, torch
from inflate3d.weights.catalogue import read_labels
assert "site-packages" in inflate3d.__file__, inflate3d.__file__
assert len(read_labels("kinetics-400")) == 400
with torch.inference_mode():
    assert inflate3d.InceptionI3d(7).eval()(torch.zeros(1, 3, 9, 193, 193)).shape == (1, 7)
print("it works:", inflate3d.__version__)
"""


def check_installs(package: Path) -> None:
    """Install a wheel or an sdist, import it, run a network and a command."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=False)
        python = Path(folder) / "bin" / "python"
        site = Path(
            subprocess.check_output(
                [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
            ).strip()
        )
        # every package of this environment but the editable checkout itself
        for other in Path(sysconfig.get_path("purelib")).iterdir():
            if "inflate3d" not in other.name:
                (site / other.name).symlink_to(other)
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
        environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        subprocess.run([*pip, "--no-build-isolation", str(package)], check=True, env=environment)
        subprocess.run([python, "-I", "-c", USE], check=True, cwd=folder)
        command = python.with_name("inflate3d")
        subprocess.run([command, "--help"], check=True, cwd=folder, stdout=subprocess.DEVNULL)
        plan = subprocess.check_output([command, "plan", "torchvision/resnet18"], cwd=folder, text=True)
        assert "layer4.1.conv2" in plan, plan


def check_holds_what_git_does(sdist: Path) -> None:
    """A stranger can run the tests from the sdist, and nothing that lies about in the checkout gets into it."""
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()} - {"PKG-INFO"}
    kept = set(subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines())
    assert held == kept, f"only in the sdist: {sorted(held - kept)}; only in git: {sorted(kept - held)}"


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    (wheel,) = folder.glob("inflate3d-*.whl")
    (sdist,) = folder.glob("inflate3d-*.tar.gz")
    check_holds_what_git_does(sdist)
    for package in (wheel, sdist):
        check_installs(package)


if __name__ == "__main__":
    main()

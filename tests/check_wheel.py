"""Install the built wheel into an environment that sees this one's packages, and use it from an empty folder."""

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

USE = """
import inflate3d, torch
from inflate3d.weights.catalogue import read_labels
assert "site-packages" in inflate3d.__file__ and "borrowed" not in inflate3d.__file__, inflate3d.__file__
assert len(read_labels("kinetics-400")) == 400
with torch.inference_mode():
    assert inflate3d.InceptionI3d(7).eval()(torch.zeros(1, 3, 9, 193, 193)).shape == (1, 7)
print("the wheel works:", inflate3d.__version__)
"""


def main() -> None:
    (wheel,) = Path(sys.argv[1]).resolve().glob("inflate3d-*.whl")
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=False)
        python = Path(folder) / "bin" / "python"
        site = Path(
            subprocess.check_output(
                [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
            ).strip()
        )
        # every package of this environment but the editable checkout itself
        for package in Path(sysconfig.get_path("purelib")).iterdir():
            if "inflate3d" not in package.name:
                (site / package.name).symlink_to(package)
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
        environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        subprocess.run([*pip, str(wheel)], check=True, env=environment)
        subprocess.run([python, "-I", "-c", USE], check=True, cwd=folder)
        subprocess.run([python.with_name("inflate3d"), "--help"], check=True, cwd=folder, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()

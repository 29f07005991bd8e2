"""Build the data plane: each .pyx of cython_src becomes the module monolith_kv._name."""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

ROOT = Path(__file__).parent
DEBUG = os.environ.get("MONOLITH_KV_DEBUG") == "1"
# Cython finds a .pxd by module name: a link shows it cython_src as the package.
VIEW = ROOT / "build" / "cython_view"
VIEW.mkdir(parents=True, exist_ok=True)
link = VIEW / "monolith_kv"
if not link.is_symlink():
    link.symlink_to(os.path.relpath(ROOT / "cython_src", VIEW))
os.chdir(ROOT)

# No -march=native and no -ffast-math: wheels run on any machine of their architecture, and
# -ffp-contract=off keeps kernels equal to the NumPy oracle where the compiler could fuse.
FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
extensions = [
    Extension(
        f"monolith_kv.{source.stem}",
        [f"build/cython_view/monolith_kv/{source.name}"],
        extra_compile_args=["-O1", "-g", "-UNDEBUG"] if DEBUG else FLAGS,
        include_dirs=["cython_src"],
    )
    for source in sorted((ROOT / "cython_src").glob("*.pyx"))
]
setup(
    ext_modules=cythonize(
        extensions,
        build_dir="build/c",
        include_path=[str(VIEW)],
        nthreads=os.cpu_count() or 1,
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": False,
            "initializedcheck": DEBUG,
            "cdivision": True,
            "embedsignature": True,
            "freethreading_compatible": True,
        },
    )
)

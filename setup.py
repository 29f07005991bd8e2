"""Build cython_src/_name.pyx as monolith_kv._name.

MONOLITH_KV_DEBUG=1 turns Cython's checks on, MONOLITH_KV_SANITIZE=address,undefined or =thread the
compiler's: tests/sanitize/run.sh builds so, beside the extensions of every day.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

os.chdir(Path(__file__).resolve().parent)
DEBUG = os.environ.get("MONOLITH_KV_DEBUG") == "1"
SANITIZE = os.environ.get("MONOLITH_KV_SANITIZE", "")
JOBS = os.cpu_count() or 1
# Cython finds a .pxd by module name: a link shows it cython_src as the package.
VIEW = Path("build/cython_view")
VIEW.mkdir(parents=True, exist_ok=True)
if not (VIEW / "monolith_kv").is_symlink():
    (VIEW / "monolith_kv").symlink_to("../../cython_src")

# No -march=native and no -ffast-math: wheels run on any machine of their architecture, and
# -ffp-contract=off keeps kernels equal to the NumPy oracle where the compiler could fuse.
FLAGS = ["-O3", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-Wno-sign-compare", "-Wno-unused-function"]  # Of what Cython writes, not of ours.
if DEBUG:
    FLAGS = ["-O1", "-g", "-UNDEBUG"]
INSTRUMENT = [f"-fsanitize={SANITIZE}"] if SANITIZE else []
if SANITIZE:
    # No copies for wider vectors: the loader picks one before a sanitizer's runtime has started.
    FLAGS += ["-O1", "-g", "-fno-omit-frame-pointer", "-DMKV_WIDE=", *INSTRUMENT]
TRANSLATE = {"build_dir": "build/c", "include_path": [str(VIEW)], "nthreads": JOBS}
DIRECTIVES = {
    "boundscheck": DEBUG,
    "initializedcheck": DEBUG,
    "wraparound": False,
    "cdivision": True,
    "embedsignature": True,
    "freethreading_compatible": True,
}
extensions = [
    Extension(
        f"monolith_kv.{source.stem}",
        [str(VIEW / "monolith_kv" / source.name)],
        extra_compile_args=FLAGS,
        extra_link_args=INSTRUMENT,
        include_dirs=["cython_src"],
    )
    for source in sorted(Path("cython_src").glob("*.pyx"))
]


class BuildCython(build_ext):
    """Translate when something is compiled, not whenever metadata is asked for."""

    def build_extensions(self):
        sources = cythonize(self.extensions, compiler_directives=DIRECTIVES, **TRANSLATE)
        for extension, c in zip(self.extensions, sources, strict=True):
            extension.sources, extension.depends = c.sources, c.depends
        super().build_extensions()


tools = ["monolith_kv_tools", *(f"monolith_kv_tools.{name}" for name in find_packages("tools"))]
setup(
    packages=[*find_packages(include=["monolith_kv", "monolith_kv.*"]), *tools],
    package_dir={"monolith_kv_tools": "tools"},
    options={"build_ext": {"parallel": JOBS}},
    cmdclass={"build_ext": BuildCython},
    ext_modules=extensions,
)

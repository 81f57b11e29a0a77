"""Builds tapeseal._core, the one extension, from _core/. Everything else is in pyproject.toml."""

import os
import sys
import sysconfig
from glob import glob

from setuptools import Extension, setup

core = Extension(
    "tapeseal._core",
    sources=[
        "_core/_core.pyx",
        "_core/crypto_memory.c",
        "_core/frames.c",
        "_core/memory.c",
        "_core/rows.c",
        "_core/rows_pclmul.c",  # a kernel for another processor compiles to nothing
        "_core/rows_pmull.c",
        "_core/rows_vpclmul.c",
    ],
    depends=glob("_core/*.pxd") + glob("_core/*.h"),  # also what puts them in the sdist
    extra_compile_args=[
        *("-O2", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra", "-Wconversion"),
        # Not our warnings: CPython's internal headers, which Cython includes, are not clean.
        *("-isystem", sysconfig.get_path("include")),
    ],
    extra_link_args=["-pthread"],
)
if sys.platform == "linux":
    core.extra_link_args += ["-Wl,-z,relro", "-Wl,-z,now"]

# TAPESEAL_OPENSSL=PREFIX links PREFIX/lib/libcrypto.a in and hides its symbols (make, the wheels);
# without it the system's libcrypto is used, found by the compiler or by CFLAGS and LDFLAGS.
prefix = os.environ.get("TAPESEAL_OPENSSL")
if prefix:
    core.include_dirs.append(f"{prefix}/include")
    core.define_macros.append(("TAPESEAL_OWN_LIBCRYPTO", "1"))
    core.extra_objects.append(f"{prefix}/lib/libcrypto.a")
    if sys.platform == "linux":
        core.extra_link_args.append("-Wl,--exclude-libs,ALL")
    elif sys.platform == "darwin":
        core.extra_link_args.append("-Wl,-exported_symbol,_PyInit__core")
else:
    core.libraries.append("crypto")

if os.environ.get("TAPESEAL_WERROR"):
    core.extra_compile_args.append("-Werror")
if os.environ.get("TAPESEAL_TRACE"):  # line coverage of the .pyx
    core.cython_directives = {"linetrace": True}
    core.define_macros.append(("CYTHON_TRACE_NOGIL", "1"))
if os.environ.get("TAPESEAL_SANITIZE"):
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    core.extra_compile_args += [*flags, "-fno-omit-frame-pointer", "-g", "-O1"]
    core.extra_link_args += flags

setup(ext_modules=[core])

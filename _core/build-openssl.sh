#!/usr/bin/env bash
# Builds the libcrypto that tapeseal._core links in: OpenSSL 3.5 LTS, static, hidden, no more of it than is needed.
#
#   build-openssl.sh [PREFIX]   makes PREFIX/lib/libcrypto.a and PREFIX/include; does nothing where they are whole
#   build-openssl.sh --where    prints the PREFIX taken when none is given, in the user's cache
#
# The source is $TAPESEAL_OPENSSL_TARBALL, else upstream's newest release below, downloaded. Both must be one of the
# releases below. Needs a C compiler, make and perl. Exit status 2: it cannot be built here, for want of perl or source.
set -euo pipefail

# Version and SHA-256 of upstream's tarballs, newest first.
releases=(
  "3.5.9 603f5602e2eef00d77fbd429d34dcd5822bb301757a1bc9cdb24c670f1eb859a"
  "3.5.8 a8f84a39918ec6415ce765d9b429d313ba97b8143169c172e734b9514464f5b2"
  "3.5.7 a8c0d28a529ca480f9f36cf5792e2cd21984552a3c8e4aa11a24aa31aeac98e8"
)

# no-bulk is upstream's own smallest set of algorithms. It also leaves out what a library inside somebody else's
# process must not do: load modules, read an openssl.cnf, and clean up at exit under threads that still run.
# no-secure-memory: key schedules lie where CRYPTO_set_mem_functions says, not in an arena of OpenSSL's.
options=(
  no-bulk no-legacy no-module no-secure-memory no-sock no-http no-ssl no-scrypt no-slh-dsa no-zlib no-zstd
  no-apps no-docs no-tests
  --prefix=/nonexistent/tapeseal --openssldir=/nonexistent/tapeseal --libdir=lib
  -fPIC -fvisibility=hidden
)

say() { echo "build-openssl: $*" >&2; }

digest() { (sha256sum "$1" 2>/dev/null || shasum -a 256 "$1") | cut -d ' ' -f 1; }

# The stamp comes into place together with everything else, so a PREFIX is whole or not there.
whole() {
  local release
  for release in "${releases[@]}"; do
    if [ "$(cat "$1/stamp" 2>/dev/null)" = "openssl $release ${options[*]}" ]; then
      return 0
    fi
  done
  return 1
}

tarball=${TAPESEAL_OPENSSL_TARBALL:-}
wanted=${releases[0]}
if [ -n "$tarball" ]; then
  if [ ! -f "$tarball" ]; then
    say "no source: TAPESEAL_OPENSSL_TARBALL is $tarball, which is no file"
    exit 2
  fi
  sha256=$(digest "$tarball")
  wanted=
  for release in "${releases[@]}"; do
    if [ "${release#* }" = "$sha256" ]; then
      wanted=$release
    fi
  done
  if [ -z "$wanted" ]; then
    say "refused: $tarball is none of the releases pinned in $0 (its SHA-256 is $sha256)"
    exit 1
  fi
fi

in_cache() { echo "${XDG_CACHE_HOME:-$HOME/.cache}/tapeseal/openssl-${1%% *}-$(uname -m)"; }
prefix=${1:---where}
if [ "$prefix" = --where ]; then
  prefix=$(in_cache "$wanted")
  if [ -z "$tarball" ]; then # What an earlier run built from a tarball serves as well as the newest.
    for release in "${releases[@]}"; do
      if whole "$(in_cache "$release")"; then
        prefix=$(in_cache "$release")
        break
      fi
    done
  fi
  if [ "${1:-}" = --where ]; then
    echo "$prefix"
    exit
  fi
fi
if whole "$prefix"; then
  exit
fi

if ! perl -MIPC::Cmd -MPod::Usage -e 1 2>/dev/null; then
  say "no perl, or not all of it (Debian's package perl, Fedora's perl-core)"
  exit 2
fi

version=${wanted%% *}
sha256=${wanted#* }
mkdir -p "$(dirname "$prefix")"
work=$(mktemp -d "$prefix.XXXXXX")
trap 'rm -rf "$work"' EXIT

if [ -z "$tarball" ]; then
  tarball=$work/openssl.tar.gz
  url=https://github.com/openssl/openssl/releases/download/openssl-$version/openssl-$version.tar.gz
  say "downloading $url"
  if command -v curl >/dev/null; then
    get=(curl --fail --silent --show-error --location --connect-timeout 20 --output "$tarball" "$url")
  else
    get=(python3 -c 'import sys, urllib.request as r; r.urlretrieve(sys.argv[1], sys.argv[2])' "$url" "$tarball")
  fi
  if ! "${get[@]}" 2>"$work/error"; then
    say "no source: $(tail -n 1 "$work/error"); set TAPESEAL_OPENSSL_TARBALL to a tarball of OpenSSL $version"
    exit 2
  fi
  if [ "$(digest "$tarball")" != "$sha256" ]; then
    say "refused: what came is not OpenSSL $version (its SHA-256 is $(digest "$tarball"))"
    exit 1
  fi
fi

say "building OpenSSL $version's libcrypto in $prefix, about a minute on two cores"
build() {
  set -e
  tar xzf "$tarball" -C "$work"
  cd "$work/openssl-$version"
  ./config "${options[@]}"
  make -j "$(getconf _NPROCESSORS_ONLN)" build_generated
  make -j "$(getconf _NPROCESSORS_ONLN)" libcrypto.a
  mkdir -p "$work/prefix/lib" "$work/prefix/include/openssl"
  cp libcrypto.a "$work/prefix/lib/"
  cp include/openssl/*.h "$work/prefix/include/openssl/"
  cp LICENSE.txt "$work/prefix/"
  echo "openssl $wanted ${options[*]}" >"$work/prefix/stamp"
}
# A list's left side would switch set -e off inside, hence the plain call between two settings.
set +e
(build) >"$work/log" 2>&1
status=$?
set -e
if [ "$status" -ne 0 ]; then
  tail -n 30 "$work/log" >&2
  say "failed; the end of the build's output is above"
  exit 1
fi
if [ -e "$prefix" ]; then
  mv "$prefix" "$work/old"
fi
mv "$work/prefix" "$prefix"
say "done"

